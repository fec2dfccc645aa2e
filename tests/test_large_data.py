"A set larger than memory: decoded once, in pieces, then trained from a mapped file of which no start reads more than it needs"
import json, mmap, os, subprocess, sys
import numpy as np, pytest, torch
from PIL import Image
from redo.core import RedoError
from redo.data import core
from redo.data.core import Pictures
from redo.data.loaders import MemoryDL, redo_dataloaders

slow = os.environ.get('REDO_SLOW') == '1'
linux = pytest.mark.skipif(not sys.platform.startswith('linux'), reason='memory is counted in /proc')

def many(d, n, size=64, kinds=97):
    "A folder of `n` noisy JPEGs, hard links to a few"
    d.mkdir()
    rng = np.random.default_rng(0)
    for i in range(n):
        f,first = d/f'{i:06}.jpg',d/f'{i%kinds:06}.jpg'
        if i < kinds: Image.fromarray(rng.integers(0, 255, (24,24,3), dtype=np.uint8)).resize((size,size)).save(f)
        else: os.link(first, f)
    return d

start = '''
import json, sys, threading, time
from redo.data import core
from redo.data.loaders import data_fingerprint, redo_dataloaders
def anon(): return next(int(o.split()[1]) for o in open('/proc/self/status') if o.startswith('RssAnon'))/1024
folder,size,may_read = sys.argv[1],int(sys.argv[2]),sys.argv[3] == 'read'
if not may_read:
    def no(*args, **kw): raise SystemExit('a picture was opened')
    core.read_image = core.read_mask = core.Image.open = no
peak,before,ended = [0],anon(),threading.Event()
def watch():
    while not ended.wait(.005): peak[0] = max(peak[0], anon()-before)
t = threading.Thread(target=watch); t.start()
begin = time.perf_counter()
dls = redo_dataloaders(folder, size, bs=8, flip=True, device='cpu', progress=False)
made = time.perf_counter()-begin
print_ = data_fingerprint(dls)
total,sums = time.perf_counter()-begin,[]
dls.train.n_steps = 40
for x, in dls.train: sums.append(int((x+1).mul(127.5).round().long().sum()))
ended.set(); t.join()
print(json.dumps(dict(loaders=made, start=total, anon=peak[0], fingerprint=print_, sums=sums,
    set=sum(o.dataset.images.nbytes for o in dls.loaders)/2**20)))
'''

def measure(folder, size, may_read=True, timeout=100, **env):
    env = {**os.environ, 'PYTHONPATH': os.getcwd(), 'PYTHONWARNINGS': 'ignore', 'MALLOC_ARENA_MAX': '2', **env}
    p = subprocess.run([sys.executable, '-c', start, str(folder), str(size), 'read' if may_read else 'no'],
                       env=env, capture_output=True, text=True, timeout=timeout)
    assert p.returncode == 0, p.stderr
    return json.loads(p.stdout.splitlines()[-1])

@linux
@pytest.mark.parametrize('n,size,share', [(2000,160,2), pytest.param(50_000, 64, 4, marks=pytest.mark.skipif(not slow, reason='REDO_SLOW=1 runs it'))])
def test_a_second_start_opens_no_picture(tmp_path, n, size, share):
    d = many(tmp_path/'pics', n)
    first = measure(d, size, timeout=600)
    again = measure(d, size, may_read=False)
    for k in ('fingerprint','sums','set'): assert first[k] == again[k], k
    for o in (first,again): assert o['anon'] < o['set']/share, o
    if n > 2000: assert again['start'] < first['start']/2, (first['start'], again['start'])

def test_masks_are_opened_once(tmp_path, monkeypatch):
    d = tmp_path/'set'
    (d/'masks').mkdir(parents=True)
    many(d/'images', 20)
    for i in range(20): Image.fromarray(np.eye(64, dtype=np.uint8)*(i%3)).save(d/'masks'/f'{i:06}.png')
    def start(): return [(o.dataset.images, o.dataset.truth) for o in redo_dataloaders(d, 16, bs=2, device='cpu', progress=False)]
    first = start()
    monkeypatch.setattr(Image, 'open', None)
    for a,b in zip(first, start()):
        for x,y in zip(a, b): assert x is None and y is None or torch.equal(x, y)
    mask = max((d/'masks').iterdir())
    mask.touch()
    with pytest.raises(RedoError, match=mask.name): start()

@linux
def test_a_file_larger_than_the_memory(tmp_path):
    n,row = 2*os.sysconf('SC_PHYS_PAGES')*os.sysconf('SC_PAGE_SIZE')//49152+1,(3,128,128)
    f = tmp_path/'big.npy'
    try:
        f.write_bytes(core._npy_head((n,*row)))
        os.truncate(f, f.stat().st_size+n*49152)
    except OSError: pytest.skip('no file system for such a file')
    def used(): return {o.split(':')[0]: int(o.split()[1])/1024 for o in open('/proc/self/status') if o.startswith('Rss')}
    with pytest.raises(OSError): mmap.mmap(os.open(f, os.O_RDONLY), 0, flags=mmap.MAP_PRIVATE) # what is not to be done
    x,_ = core.map_array(f, (n,*row))
    dl,before = MemoryDL(Pictures(x, names=range(n)), bs=32, size=96, train=True, flip=True, reals=True, n_steps=4),used()
    for b, in dl: assert b.shape == (64,3,96,96) and (b == -1).all()
    x[-1,0,0,0] = 7
    assert int(x[-1].sum()) == 7 and not int(core.map_array(f, (n,*row))[0][-1].sum())
    after = used()
    assert after['RssAnon']-before['RssAnon'] < 64, (before, after)
    assert after['RssFile']-before['RssFile'] < 512, (before, after)

if __name__ == '__main__': # numbers of the code in PYTHONPATH: python tests/test_large_data.py FOLDER N SIZE
    from pathlib import Path
    d,n,size = Path(sys.argv[1]),int(sys.argv[2]),int(sys.argv[3])
    if not d.exists(): many(d, n)
    for i in range(2): print({k: v for k,v in measure(d, size, timeout=900).items() if k != 'sums'}, flush=True)
