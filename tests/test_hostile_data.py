"Folders as they come, with pipes, results of other runs, names that are no text, empty masks: one line each, and nothing hangs"
import gzip, json, os, socket, struct, sys, time, tracemalloc
from pathlib import Path
import numpy as np, pytest, torch
from PIL import Image
from redo.cli import redo_segment, redo_train, run_command
from redo.core import RedoError
from redo.data.augment import augment
from redo.data.folders import FolderSource, picture_files
from redo.data.images import parallel_map
from redo.data.loaders import data_fingerprint, redo_dataloaders
from redo.data.photos import fetch
from redo.data.toy import _read_idx

pytestmark = pytest.mark.filterwarnings('always')
options = '--size 32 --steps 2 --bs 2 --set nf=4,nf_mask=4,nf_disc=4,collapse=0 --device cpu --no-progress'.split()
needs_fifo = pytest.mark.skipif(not hasattr(os, 'mkfifo'), reason='pipes have no names here')

def paint(path, seed=0, grey=None, size=32):
    path.parent.mkdir(parents=True, exist_ok=True)
    a = np.random.default_rng(seed).integers(0, 255, (size,size,3)) if grey is None else np.full((size,size), grey)
    Image.fromarray(a.astype(np.uint8)).save(path)

def photos(d, n=12, masks=None):
    "A folder of pictures, and of masks of one value"
    for i in range(n):
        paint(d/'images'/f'{i}.png' if masks is not None else d/f'{i}.png', i)
        if masks is not None: paint(d/'masks'/f'{i}.png', grey=masks)
    return d

def command(f, *argv):
    try: return run_command(f.__wrapped__, [str(o) for o in argv])
    except SystemExit as e: return e.code

def lines(capsys): return [o for o in capsys.readouterr().err.splitlines() if o.strip()]

pipes = '''
import sys
from pathlib import Path
from redo.cli import redo_train, run_command
from redo.data.images import read_image, read_mask
from redo.data.cache import files_key
from redo.data.folders import FolderSource, _mask_values
from redo.data.loaders import items_set, redo_dataloaders
from redo.data.photos import get_source
from redo.data.toy import read_mnist
d = Path(sys.argv[1])
def tell(f, *args, **kw):
    try: print('gave', f(*args, **kw), flush=True)
    except Exception as e: print(type(e).__name__, e, flush=True)
kw = dict(size=8, bs=2, device='cpu', progress=False)
tell(read_image, d/'flat'/'a.jpg')
tell(read_mask, d/'flat'/'a.jpg')
tell(lambda: len(files_key([d/'flat'/'a.jpg'])))
tell(items_set, d/'flat', 8)
tell(redo_dataloaders, d/'flat', **kw)
tell(lambda: sum(len(o.dataset) for o in redo_dataloaders(d/'flat', skip_bad=True, **kw)))
tell(_mask_values, [d/'masked'/'masks'/'0.png'])
tell(lambda: FolderSource(d/'masked').pictures(FolderSource(d/'masked').splits[-1], 8))
tell(FolderSource, d/'listed')
tell(read_mnist, 'train', d/'mnist')
print('gave', run_command(redo_train.__wrapped__, [str(d/'flat'), '--out', str(d/'out'), *sys.argv[2:]]))
'''

@needs_fifo
def test_pipes_are_not_waited_for(tmp_path, python):
    flat,masked,listed,mnist = photos(tmp_path/'flat'),photos(tmp_path/'masked', 4, masks=255),photos(tmp_path/'listed', 4),tmp_path/'mnist'
    mnist.mkdir()
    (masked/'splits.json').write_text(json.dumps(dict(train=['1','2'], test=['0','3'])))
    (masked/'masks'/'0.png').unlink()
    idx = [mnist/f'train-{o}-ubyte.gz' for o in ('images-idx3','labels-idx1')]
    for f in (flat/'a.jpg', masked/'masks'/'0.png', listed/'splits.json', *idx): os.mkfifo(f)
    p = python(pipes, tmp_path, *options, out=tmp_path/'out.txt', err=tmp_path/'err.txt')
    try: p.wait(150)
    finally: p.kill()
    said,err = [[o for o in (tmp_path/f'{n}.txt').read_text().splitlines() if o.strip()] for n in ('out','err')]
    for o in (0,1,3,4,7,8,9): assert said[o].startswith('RedoError cannot read ') and 'it is a pipe' in said[o], said
    assert [said[2],said[5],said[6],said[-1]] == ['gave 40','gave 12','gave []','gave 1'], said
    assert len(err) == 1 and err[0].startswith('redo-train: cannot read ') and 'a.jpg: it is a pipe' in err[0], err

def test_a_run_does_not_learn_from_the_last_one(tmp_path, monkeypatch, capsys):
    d = photos(tmp_path/'photos')
    monkeypatch.chdir(d)
    def fingerprint(): return data_fingerprint(redo_dataloaders('.', 32, bs=2, device='cpu', progress=False))
    before = fingerprint()
    assert before.startswith('11 pictures, ')
    assert command(redo_train, '.', '--out', 'run', *options) == 0, capsys.readouterr()
    assert lines(capsys) == []
    assert command(redo_segment, '.', '--model', 'run', '--out', 'cut', '--no-progress') == 0, capsys.readouterr()
    assert len(list(d.rglob('*.png'))) > 12+3*12
    capsys.readouterr()
    assert command(redo_train, '.', '--out', 'again', *options) == 0
    err = lines(capsys)
    assert len(err) == 1 and 'left out below .: results in ./cut and 1 more' in err[0], err # once, for all that is left out
    with pytest.warns(UserWarning, match='left out'): assert fingerprint() == before

@pytest.mark.skipif(sys.platform != 'linux', reason='names are text here')
def test_names_are_bytes(tmp_path, capsys):
    d = photos(tmp_path/'photos', 3)
    for i,name in enumerate((b'caf\xe9.png', b'two\nlines.png', b'\x1b[31mred.png')):
        paint(tmp_path/'new.png', i+9)
        os.rename(tmp_path/'new.png', os.path.join(os.fsencode(d), name))
    run,cut = tmp_path/'run',tmp_path/'cut'
    for _ in range(2): # the second time from the cache
        assert command(redo_train, d, '--out', run, *options) == 0, capsys.readouterr()
        assert lines(capsys) == []
        (run/'summary.json').unlink(); (run/'checkpoint.pth').unlink(missing_ok=True)
        run = tmp_path/'run2'
    assert command(redo_segment, d, '--model', tmp_path/'run', '--out', cut, '--no-progress') == 0, capsys.readouterr()
    assert len(json.loads((cut/'regions.json').read_text())['pictures']) == 6
    (d/'two\nlines.png').write_bytes(b'')
    capsys.readouterr()
    assert command(redo_train, d, '--out', tmp_path/'run3', *options) == 1
    err, = lines(capsys)
    assert r'two\nlines.png: it is empty' in err
    os.mkfifo(d/'more\nlines.png')
    assert command(redo_train, d, '--out', tmp_path/'run3', '--skip-bad', *options) == 0
    assert all(o.startswith('redo-train: left out') for o in lines(capsys))

def test_masks_that_say_nothing(tmp_path, capsys):
    assert command(redo_train, photos(tmp_path/'void', 20, masks=128), '--out', tmp_path/'run', *options) == 0, capsys.readouterr()
    err = lines(capsys)
    assert [o.split("'")[1] for o in err] == ['valid','test'] and all('counts in scores' in o for o in err), err
    assert command(redo_train, photos(tmp_path/'full', 20, masks=255), '--out', tmp_path/'run2', *options) == 0, capsys.readouterr()
    assert lines(capsys) == []

bad_splits = ['null', '[]', '3', '"train"',
    '['*100_000, '{"train": 3}', '{"train": [3]}', '{"train": {"a": 1}}', '{"train": []}', '{"x\\ny": []}', '\ufeff{',
    '{"train": ["0"], "val": ["../0"]}', '{"train": ["0", "no\\nsuch"]}', '{"train": ["\\ud800"]}', '{"train": ["0"], "val": ["0"]}']

@pytest.mark.parametrize('text', bad_splits, ids=range(len(bad_splits)))
def test_bad_splits(tmp_path, text):
    d = photos(tmp_path/'p', 2)
    (d/'splits.json').write_text(text, encoding='utf-8')
    with pytest.raises(RedoError) as e: FolderSource(d)
    assert 'splits.json' in str(e.value) and str(e.value).isprintable() and len(str(e.value)) < 600

def test_links_in_circles(tmp_path):
    d = photos(tmp_path/'p', 2)
    for i in range(20): os.symlink('..' if i % 2 else '.', (d/f'l{i}'))
    os.symlink('self.png', d/'self.png')
    (d/'real').mkdir()
    os.symlink('../real', d/'real'/'in')
    assert [o.name for o in picture_files(d)] == ['0.png','1.png','self.png']
    with pytest.raises(RedoError, match='self.png'): redo_dataloaders(d, 8, bs=1, device='cpu', progress=False)
    os.unlink(d/'self.png')
    os.symlink('nowhere', d/'splits.json')
    with pytest.raises(RedoError, match='splits.json: there is no such file'): FolderSource(d)

def test_idx_files_that_promise_too_much(tmp_path):
    f = tmp_path/'x'
    f.write_bytes(b'\0\0\x08\x03'+struct.pack('>3I', 2**22, 2**10, 2**10))
    try: os.truncate(f, 16+2**42)
    except OSError: pass # no file system for such a file
    g = tmp_path/'x.gz'
    with gzip.open(g, 'wb') as o: o.write(b'\0\0\x08\x01'+struct.pack('>I', 10)+bytes(2**25))
    for o in (f,g):
        tracemalloc.start()
        with pytest.raises(RedoError, match='cut short or too long'): _read_idx(o)
        assert tracemalloc.get_traced_memory()[1] < 2**20
        tracemalloc.stop()

def test_a_server_that_says_nothing(tmp_path, monkeypatch):
    "It takes the connection and never answers: given up after the time that `fetch` sets, which nothing else inherits"
    given,real = [],socket.setdefaulttimeout
    def shorter(t): given.append(t); real(t and .3)
    monkeypatch.setattr(socket, 'setdefaulttimeout', shorter)
    monkeypatch.setenv('no_proxy', '127.0.0.1')
    with socket.create_server(('127.0.0.1', 0)) as s:
        start = time.perf_counter()
        with pytest.raises(RedoError, match='cannot download http://127.0.0.1.*timed out.*put jpg into'):
            fetch('flowers102', tmp_path/'new', f'http://127.0.0.1:{s.getsockname()[1]}', progress=False)
    assert given == [60,None] and time.perf_counter()-start < 20
    assert list((tmp_path/'new').iterdir()) == []

def test_a_row_of_bad_pictures_ends_what_is_begun():
    begun = []
    def fail(i): begun.append(i); raise KeyError(i)
    with pytest.raises(KeyError): parallel_map(fail, range(10**5))
    assert len(begun) <= 64

def test_maps_move_with_their_pictures_or_are_refused():
    x,gen = torch.rand(4,3,16,16)*2-1,torch.Generator().manual_seed(0)
    masks = (x[:,0] > 0).float()
    masks[:,:4] = torch.nan
    for bad in (masks[:,:8], masks[None], masks.bool(), masks[:2]):
        with pytest.raises(RedoError, match=r"cannot augment 'foreground' of shape") as e: augment(x, dict(foreground=bad), gen)
        assert str(e.value).isprintable()
    new,moved = augment(x.gt(0).float()*2-1, dict(foreground=masks), gen, jitter=0)
    known = ~moved['foreground'].isnan()
    assert 0 < known.float().mean() < 1 and torch.allclose(moved['foreground'][known], (new[:,0][known]+1)/2, atol=1e-5)
