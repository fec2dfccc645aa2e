"Models, pictures, names and settings as nobody should give them: one line, at once, and nothing of anybody's is lost"
import json, os, signal, subprocess, sys, time, warnings, weakref
from pathlib import Path
import pytest, torch
from PIL import Image
from safetensors.torch import load_file, save_file
from redo.cli import redo_evaluate, redo_export, redo_redraw, redo_segment, redo_teach, redo_train
from redo.command import run_command
from redo.models.redo import ReDO
from redo.weights import packaged_models

@pytest.fixture(autouse=True)
def alarm():
    "Nothing here may wait for ever"
    def late(*args): raise TimeoutError('this hangs')
    old = signal.signal(signal.SIGALRM, late)
    signal.alarm(240)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, old)

@pytest.fixture
def shell(capfd):
    "`shell(command, *argv)` gives exit status, stdout and stderr"
    def run(f, *argv):
        argv = [str(o) for o in argv] + ['--no-progress']*(f is not redo_export)
        return run_command(f.__wrapped__, argv),*capfd.readouterr()
    return run

@pytest.fixture
def here(tmp_path, monkeypatch):
    "A folder with two pictures and a small model, to work in"
    monkeypatch.chdir(tmp_path)
    Path('pics').mkdir()
    for i in range(2): Image.effect_noise((60,40+i), 60).convert('RGB').save(f'pics/{i}.png')
    torch.manual_seed(0)
    model = ReDO(size=32, nf=4)
    model.notes = dict(assignment=[0,1], spec='digits')
    model.save_pretrained('good')
    return model

def one_line(res, *words):
    "It failed with one line that says so"
    rc,_,err = res
    assert rc == 1 and err.count('\n') == 1, res
    for o in words: assert o in err, (o, err)

def spoil(name, **tensors):
    "A copy of the model with other tensors"
    state = load_file('good/model.safetensors')
    Path(name).mkdir()
    Path(name,'config.json').write_text(Path('good/config.json').read_text())
    save_file(state | {k: torch.full_like(state[k], v) for k,v in tensors.items()}, Path(name,'model.safetensors'))

# Models

def test_weights_that_are_not_finite(here, shell):
    spoil('nan', **{'mask.head.1.bias': torch.nan})
    state = dict(here.state_dict(), **{'mask.head.1.bias': torch.tensor([torch.inf])})
    torch.save(dict(config=here.config, model=state), 'inf.pth')
    for m in ('nan','inf.pth'):
        one_line(shell(redo_segment, 'pics', '--model', m), m, "'mask.head.1.bias' is not finite")
        one_line(shell(redo_redraw, 'pics', '--model', m), 'not finite')
        one_line(shell(redo_evaluate, '--model', m, '--data', 'digits'), 'not finite')
        one_line(shell(redo_export, '--model', m, '--out', 'x.onnx'), 'not finite')
    assert not Path('x.onnx').exists() and not Path('segmented').exists()

@pytest.mark.parametrize('changes,words', [({'n_res': 10**9}, 'n_res=1000000000: use a whole number from 0 to 32'), ({'nf_mask': -1}, 'nf_mask=-1'), ({'temperature': float('nan')}, 'temperature=nan'),
    ({'nz': [1]}, 'nz=[1]'), ({'gain': None}, 'gain=None'), ({'no_such': 1}, "unknown option 'no_such'"), ({'size': {'a': 1}}, 'size='), ({'nf_mask': 1024}, 'does not fit'), ({'n_regions': 64, 'nf_gen': 1024, 'size': 256}, 'does not fit')])
def test_configurations(here, shell, changes, words):
    cfg = json.loads(Path('good/config.json').read_text())
    Path('good/config.json').write_text(json.dumps(cfg | {'config': cfg['config']|changes}))
    torch.save(dict(config=here.config|changes, model=here.state_dict()), 'ck.pth')
    for m in ('good','ck.pth'): one_line(shell(redo_segment, 'pics', '--model', m), m, words)

def test_nothing_of_the_asked_size_is_allocated(here):
    big = dict(here.config, nf_disc=1024, nf_gen=1024, nf_latent=1024, size=256)
    torch.save(dict(config=big, model={k: v for k,v in here.state_dict().items()}), 'ck.pth')
    code = '''
import resource, sys
from redo.core import RedoError
from redo.use.segment import load_model
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
try: load_model('ck.pth', 'cpu')
except RedoError as e: print(e)
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss-before)//1024)
'''
    root = Path(__file__).resolve().parents[1]
    p = subprocess.run([sys.executable, '-c', code], env=dict(os.environ, PYTHONPATH=str(root)), capture_output=True, text=True, timeout=200, preexec_fn=lambda: __import__('resource').setrlimit(__import__('resource').RLIMIT_AS, (2**35,2**35)))
    said,mb = p.stdout.splitlines()
    assert 'does not fit' in said and int(mb) < 300, (p.stdout, p.stderr)

def test_names_that_are_no_model(here, shell, monkeypatch):
    asked = []
    monkeypatch.setattr('redo.weights.snapshot_download', lambda name, **kw: asked.append(name) or 1/0)
    Path('runs').mkdir()
    for m in ('runs/digits', 'a b/c', './x/y'): one_line(shell(redo_segment, 'pics', '--model', m), f'there is no model {m}: ')
    assert not asked
    with warnings.catch_warnings():
        warnings.simplefilter('always')
        rc,_,err = shell(redo_segment, 'pics', '--model', 'user/repository')
    assert rc == 1 and asked == ['user/repository'] and 'there is no folder user/repository here: asking the hub' in err, err
    Path('learner.pkl').write_bytes(b'cos\nsystem\n(S"touch evil"\ntR.')
    one_line(shell(redo_segment, 'pics', '--model', 'learner.pkl'), 'learner.pkl', 'runs code', 'save_pretrained')
    assert not Path('evil').exists()

def test_pipes_and_devices(here, shell):
    os.mkfifo('pipe.pth'), os.mkfifo('pics/pipe.png'), os.mkfifo('pipe.jpg')
    Path('half').mkdir()
    os.mkfifo('half/model.safetensors'), Path('half/config.json').symlink_to('/dev/zero')
    one_line(shell(redo_segment, 'pics/0.png', '--model', 'pipe.pth'), 'pipe.pth', 'it is a pipe')
    one_line(shell(redo_segment, 'pics/0.png', '--model', '/dev/zero'), 'it is a pipe, a socket or a device')
    one_line(shell(redo_segment, 'pics/0.png', '--model', 'half'), 'half/config.json')
    for f,made in ((redo_segment,'0.mask.png'), (redo_redraw,'redraw_01.png')):
        rc,_,err = shell(f, 'pics', 'pipe.jpg', '/dev/zero', '--model', 'good', '--out', 'out')
        assert rc == 1 and err.count('\n') == 3 and err.count('it is a pipe') == 3 and Path('out',made).exists(), err

# Pictures and their names

def results(folder='segmented'):
    "What is written down, and that it is what is there"
    res = json.loads(Path(folder,'regions.json').read_bytes().decode())
    files = {f.relative_to(folder).as_posix() for f in Path(folder).rglob('*.png')}
    assert {f"{o['name']}.{k}.png" for o in res['pictures'] for k in ('mask','overlay','cutout')} == files
    return res

def test_long_names(here, shell):
    for i,o in enumerate(('x'*250, 'ä'*125)): os.rename(f'pics/{i}.png', f'pics/{o}.png')
    Image.new('RGB', (50,50)).save('pics/plain.png')
    rc,said,err = shell(redo_segment, 'pics', '--model', 'good')
    assert (rc, err) == (0, ''), err
    assert len(results()['pictures']) == 3
    rc,said,err = shell(redo_redraw, 'pics', '--model', 'good', '--rows', 1)
    assert (rc, err, len(list(Path('redrawn').iterdir()))) == (0, '', 3)

def test_names_that_are_no_utf8(here, shell):
    odd = os.fsdecode(b'pics/caf\xe9.png')
    Image.new('RGB', (50,50)).save(odd)
    Path(os.fsdecode(b'pics/\xff.png')).write_text('no picture')
    rc,said,err = shell(redo_segment, 'pics', odd, '--model', 'good')
    assert rc == 1 and err.count('\n') == 1 and said.startswith('3 pictures'), (said, err)
    res = results()
    assert 'caf_' in [o['name'] for o in res['pictures']] and len(res['failed']) == 1
    json.dumps(res, ensure_ascii=False).encode() # no half characters
    rc,said,err = shell(redo_redraw, 'pics', '--model', 'good', '--rows', 1)
    assert rc == 1 and err.count('\n') == 1 and Path('redrawn/caf_.redraw.png').exists(), err

def test_one_failure_costs_no_other(here, shell):
    Path('segmented/0.overlay.png/x').mkdir(parents=True)
    rc,said,err = shell(redo_segment, 'pics', '--model', 'good')
    assert rc == 1 and err.count('\n') == 1 and 'cannot write' in err
    os.rmdir('segmented/0.overlay.png/x'), os.rmdir('segmented/0.overlay.png')
    assert [o['name'] for o in results()['pictures']] == ['1']
    before = Path('segmented/regions.json').read_bytes()
    Path('bad.png').write_text('no picture')
    one_line(shell(redo_segment, 'bad.png', '--model', 'good'), 'bad.png')
    assert Path('segmented/regions.json').read_bytes() == before

def test_few_pixels_at_a_time(here, shell, monkeypatch):
    import redo.use.segment as seg
    for i in range(12): Image.effect_noise((100,100), 60).convert('RGB').save(f'pics/many{i}.png')
    assert shell(redo_segment, 'pics', '--model', 'good', '--out', 'all')[0] == 0
    alive,most,real = weakref.WeakValueDictionary(),[0],seg.to_picture
    def count(o):
        img = real(o)
        alive[id(img)] = img
        most[0] = max(most[0], sum(o.width*o.height for o in list(alive.values())))
        return img
    monkeypatch.setattr(seg, 'to_picture', count), monkeypatch.setattr(seg, 'PIXELS', 30_000, raising=False)
    for f,out in ((redo_segment,'few'), (redo_redraw,'grid')):
        assert shell(f, 'pics', '--model', 'good', '--out', out)[0] == 0
        assert most[0] <= 50_000, most # of 125_000
    for f in Path('all').iterdir(): assert f.read_bytes() == Path('few',f.name).read_bytes(), f

# redo-teach

lesson = '--size 32 --net-size 32 --teacher kmeans --nf-mask 8 --bs 4 --device cpu --no-test'.split()

def test_teachers_and_settings(here, shell, monkeypatch):
    Path('black').mkdir(), Path('single').mkdir()
    for i in range(8): Image.new('RGB', (32,32)).save(f'black/{i}.png')
    Image.effect_noise((32,32), 60).convert('RGB').save('single/0.png')
    for t in ('grabcut','kmeans'): one_line(shell(redo_teach, 'black', '--out', 'new', *lesson, '--teacher', t), '0 of ', 'are plausible', 'another teacher')
    one_line(shell(redo_teach, 'single', '--out', 'new', *lesson))
    monkeypatch.setattr('redo.use.pseudo.teacher_masks', lambda *args: 1/0)
    for a in (('--teacher','grabcut:.6'), ('--teacher','grabcut:nan'), ('--teacher','iem:-1'), ('--rounds',0), ('--steps',0), ('--lr','nan'), ('--bs',0), ('--size',4), ('--size',10**6), ('--net-size',100),
              ('--seed',2**64), ('--nf-mask',0), ('--n-res',99), ('--refine','crf')):
        one_line(shell(redo_teach, 'black', '--out', 'new', *lesson, *a))
    assert shell(redo_teach, 'black', *lesson, '--out', '') == (2, '', 'redo-teach: --out is empty: give a value, or leave it out\n')
    assert not Path('new').exists()

def test_folders_of_others(here, shell, monkeypatch):
    monkeypatch.setattr('redo.use.pseudo.teacher_masks', lambda *args: 1/0) # before any work
    assert shell(redo_train, 'digits', '--out', 'trained', '--steps', 1, '--bs', 2, '--set', 'nf=4,nf_mask=4,nf_disc=4', '--device', 'cpu')[0] == 0
    os.unlink('trained/summary.json')
    before = {f: f.read_bytes() for f in Path('trained').rglob('*') if f.is_file()}
    one_line(shell(redo_teach, 'digits', '--out', 'trained', *lesson), 'trained', 'choose another folder')
    assert {f: f.read_bytes() for f in Path('trained').rglob('*') if f.is_file()} == before
    one_line(shell(redo_teach, 'digits', '--out', 'pics', *lesson), 'pics is not empty and not ours')
    for o in ('--out','--results'): one_line(shell(redo_teach, 'digits', o, 'pics/0.png/x', *lesson), 'cannot')
    assert not list(Path().glob('redo-digits-*'))

@pytest.mark.parametrize('sig', [signal.SIGINT, signal.SIGTERM])
def test_stopped(here, shell, python, sig):
    from redo.data.toy import make_digits
    xs,_ = make_digits(20, 32, seed=1)
    Path('few').mkdir()
    for i,x in enumerate(xs): Image.fromarray(x.permute(1,2,0).numpy()).save(f'few/{i}.png')
    same = ('few', '--out', 'out', *lesson, '--steps', 300)
    p = python('import sys; from redo.cli import redo_teach; sys.exit(redo_teach())', *same, out='said.txt', err='err.txt') # a process of its own
    try:
        end = time.monotonic()+120
        while not Path('out/round-1/checkpoint.pth').exists() and p.poll() is None and time.monotonic() < end: time.sleep(.02)
        one_line(shell(redo_teach, *same), 'in use by another process')
        p.send_signal(sig)
        p.wait(120)
    finally: p.kill()
    err = Path('err.txt').read_text()
    assert p.returncode == 130, err
    assert err.startswith('redo-teach: stopped after ') and ' of 300 steps of round 1 of 1; out/weights holds' in err and err.endswith('; the same command goes on\n') and err.count('\n') == 1, err
    assert 'round 1 of 1' in Path('said.txt').read_text()
    assert 'stopped after' in Path('out/weights/README.md').read_text() and not Path('out/summary.json').exists()
    assert json.loads(Path('out/run.json').read_text())['command'] == 'redo-teach'
    assert shell(redo_segment, 'few/0.png', '--model', 'out')[0] == 0
    rc,_,err = shell(redo_train, 'digits', '--out', 'out', '--steps', 1)
    assert rc == 1 and err.count('\n') == 1 and 'out' in err
    one_line(shell(redo_teach, *same[:-1], 3), 'holds another lesson: its steps is 300, not 3')
    rows = Path('out/round-1/losses.csv').read_text()
    assert shell(redo_teach, *same)[0] == 0 and Path('out/summary.json').exists()
    assert Path('out/round-1/losses.csv').read_text().startswith(rows) and len(Path('out/round-1/losses.csv').read_text().splitlines()) == 301
    one_line(shell(redo_teach, *same), 'holds a run already')
