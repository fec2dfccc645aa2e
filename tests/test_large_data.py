"A set larger than memory: decoded once, in pieces, then trained from a mapped file of which no start reads more than it needs"
import json, mmap, os, subprocess, sys
from pathlib import Path
import numpy as np, pytest, torch
from PIL import Image
from redo.core import RedoError
from redo.data import cache
from redo.data.spec import Pictures
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

starts = '''
import json, sys, threading, time
from redo.data import cache, images
from redo.data.loaders import data_fingerprint, redo_dataloaders
def anon(): return next(int(o.split()[1]) for o in open('/proc/self/status') if o.startswith('RssAnon'))/1024
def no(*args, **kw): raise SystemExit('a picture was opened')
def start(folder, size):
    peak,before,ended = [0],anon(),threading.Event()
    def watch():
        while not ended.wait(.005): peak[0] = max(peak[0], anon()-before)
    t,begin = threading.Thread(target=watch, daemon=True),time.perf_counter()
    t.start()
    dls = redo_dataloaders(folder, size, bs=8, flip=True, device='cpu', progress=False)
    same = data_fingerprint(dls)
    secs,dls.train.n_steps = time.perf_counter()-begin,40
    sums = [int((o+1).mul(127.5).round().long().sum()) for x,more in dls.train for o in (x,more['reals'])]
    ended.set(); t.join()
    return dict(seconds=secs, anon=peak[0], set=sum(o.dataset.images.nbytes for o in dls.loaders)/2**20, same=(same,sums))
for may_read in sys.argv[3:]:
    if may_read == 'no': images.read_image = images.read_mask = cache.read_mask = images.Image.open = no
    print(json.dumps(start(sys.argv[1], int(sys.argv[2]))))
'''

def measure(folder, size, *modes, timeout=100):
    "Seconds and MB of starts in one process; those called 'no' may open no picture"
    env = {**os.environ, 'PYTHONPATH': os.getcwd(), 'PYTHONWARNINGS': 'ignore', 'MALLOC_ARENA_MAX': '2'}
    p = subprocess.run([sys.executable, '-c', starts, str(folder), str(size), *modes],
                       env=env, capture_output=True, text=True, timeout=timeout)
    assert p.returncode == 0, p.stderr
    return [json.loads(o) for o in p.stdout.splitlines()]

def compare(first, again, share):
    assert first['same'] == again['same']
    for o in (first,again): assert o['anon'] < o['set']/share, o

@linux
def test_a_second_start_opens_no_picture(tmp_path):
    compare(*measure(many(tmp_path/'pics', 2000), 128, 'yes', 'no'), 2)

@linux
@pytest.mark.skipif(not slow, reason='REDO_SLOW=1 runs it')
def test_fifty_thousand_pictures(tmp_path):
    d = many(tmp_path/'pics', 50_000)
    (first,),(again,) = measure(d, 64, 'yes', timeout=900),measure(d, 64, 'no', timeout=300)
    print({k: (first[k],again[k]) for k in ('seconds','anon','set')})
    compare(first, again, 4)
    assert again['seconds'] < first['seconds']/2

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
    for o in (d/'masks').iterdir(): o.touch()
    with pytest.raises(RedoError, match='cannot read'): start()

@linux
def test_a_file_larger_than_the_memory(tmp_path):
    n,row = 2*os.sysconf('SC_PHYS_PAGES')*os.sysconf('SC_PAGE_SIZE')//49152+1,(3,128,128)
    f = tmp_path/'big.npy'
    try:
        f.write_bytes(cache._npy_head((n,*row)))
        os.truncate(f, f.stat().st_size+n*49152)
    except OSError: pytest.skip('no file system for such a file')
    def used(): return {o.split(':')[0]: int(o.split()[1])/1024 for o in open('/proc/self/status') if o.startswith('Rss')}
    with pytest.raises(OSError): mmap.mmap(os.open(f, os.O_RDONLY), 0, flags=mmap.MAP_PRIVATE) # what is not to be done
    x,_ = cache._map_array(f, (n,*row))
    dl,before = MemoryDL(Pictures(x, names=range(n)), bs=32, size=96, train=True, flip=True, needs=('reals',), n_steps=4),used()
    for picture,more in dl:
        for b in (picture,more['reals']): assert b.shape == (32,3,96,96) and (b == -1).all()
    x[-1,0,0,0] = 7
    assert int(x[-1].sum()) == 7 and not int(cache._map_array(f, (n,*row))[0][-1].sum())
    after = used()
    assert after['RssAnon']-before['RssAnon'] < 64, (before, after)
    assert after['RssFile']-before['RssFile'] < 512, (before, after)

if __name__ == '__main__': # Numbers of the code in the current folder: python tests/test_large_data.py FOLDER N SIZE
    d,n,size = Path(sys.argv[1]),int(sys.argv[2]),int(sys.argv[3])
    if not d.exists(): many(d, n)
    for i in range(2):
        for o in measure(d, size, 'yes', timeout=900): print({k: round(o[k], 2) for k in ('seconds','anon','set')}, o['same'][0], flush=True)
