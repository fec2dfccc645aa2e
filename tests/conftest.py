"Tests leave nothing behind and keep to one core per worker; the processes that they start have imported already what takes seconds"
import json, os, re, signal, subprocess, sys, time
from collections import Counter
from contextlib import suppress
from pathlib import Path

root = Path(__file__).resolve().parents[1]
os.chdir(root)
os.environ.update(MPLBACKEND='Agg', OMP_NUM_THREADS='1', MKL_NUM_THREADS='1', TOKENIZERS_PARALLELISM='false')
os.environ.pop('IN_TEST', None)
os.environ['REDO_SHARED'] = str(Path(os.environ.get('REDO_SHARED', '../shared')).resolve())

import pytest
from nbdev.doclinks import nbglob

def pytest_addoption(parser):
    parser.addoption('--flags', default='', help="Cells to run that are otherwise skipped, as in --flags 'slow cuda'")

def notebook_id(o): return o.relative_to(root/'nbs').with_suffix('').as_posix()

def pytest_generate_tests(metafunc):
    if 'notebook' in metafunc.fixturenames:
        nbs = sorted(nbglob(root/'nbs', as_path=True))
        if metafunc.function.__name__ == 'test_complete': nbs = [o for o in nbs if re.search(r'shared_path\(|skipped: ', o.read_text(encoding='utf-8'))]
        metafunc.parametrize('notebook', nbs, ids=[notebook_id(o) for o in nbs])

# About how many seconds those take that take long, for the order alone
seconds = {'test_grids': 50, 'test_faults': 60, '81_cli': 60, 'test_site': 48, '54_train.learner': 43, 'test_distributed': 28, '71_study.run': 38, 'test_hostile_models': 35,
    'test_explorer': 35, '79_study.teach': 20, '74_study.engine': 28, 'collapse': 25, 'test_folders': 25, '75_study.timing': 23, '76_study.bench': 23, '63_use.features': 22,
    '62_use.onnx': 17, 'own_folder': 21, 'training_step': 20, 'test_law': 20, '50_train.phases': 18, '73_study.compare': 17, 'two_classes': 17, 'mask_regularization': 17,
    '68_use.edit': 14, '36_models.slot_attention': 14, '66_use.choose': 15, '64_use.segment': 15, '78_study.report': 14, '77_study.again': 12, '52_train.resume': 12, '57_use.cut': 11, 'keras_variants': 11}

def pytest_collection_modifyitems(items):
    "Of two workers each begins with a half, and takes from the end of the other's: both begin with what takes long; whether a notebook was complete is asked last, when it has run"
    groups,halves,sums = {},([],[]),[0,0]
    for o in items:
        name = o.callspec.params['notebook'].stem if 'notebook' in o.fixturenames else o.path.stem
        groups.setdefault(name if name in seconds and o.originalname != 'test_complete' else None, []).append(o)
    rest = sorted(groups.pop(None, []), key=lambda o: o.originalname == 'test_complete')
    for k in sorted(groups, key=seconds.get, reverse=True):
        i = sums.index(min(sums))
        halves[i].extend(groups[k])
        sums[i] += seconds[k]
    for o in rest: min(halves, key=len).append(o)
    items[:] = min(halves, key=len)+max(reversed(halves), key=len)

def pytest_terminal_summary(terminalreporter, config):
    "What the notebooks that ran have left out"
    of = lambda kind,test: {m[1]: o for o in terminalreporter.stats.get(kind, []) if (m := re.search(rf'test_notebooks.py::{test}\[(.+)\]', o.nodeid))}
    ran,short = {**of('passed', 'test_runs'), **of('failed', 'test_runs')},of('skipped', 'test_complete')
    cells = [''.join(c['source']) for o in ran for c in json.loads((root/'nbs'/f'{o}.ipynb').read_text(encoding='utf-8'))['cells'] if c['cell_type'] == 'code']
    n = Counter(o for c in cells for o in re.findall(r'^#\|\s*(slow|cuda)\b', c, re.M) if o not in config.getoption('--flags').split())
    for name,o in short.items(): terminalreporter.write_line(f"Left out in {name}: {o.longrepr[2].removeprefix('Skipped: ')}")
    if n: terminalreporter.write_line(f"Cells left out: {', '.join(f'{v} flagged {k}' for k,v in sorted(n.items()))}; --flags {min(n) if len(n) == 1 else repr(' '.join(sorted(n)))} runs them")

@pytest.fixture(autouse=True)
def tidy(tmp_path, tmp_path_factory, monkeypatch):
    "Caches in a folder of the test, but for Matplotlib's list of fonts, which takes time; working folder and environment as before"
    monkeypatch.chdir(root)
    for name in ('REDO_CACHE','FASTAI_HOME','HF_HOME','HYPOTHESIS_STORAGE_DIRECTORY'): monkeypatch.setenv(name, str(tmp_path/name.lower()))
    monkeypatch.setenv('MPLCONFIGDIR', str(tmp_path_factory.getbasetemp()/'matplotlib'))

# Imports what ours and notebooks take from others, once, and none of ours; then every line that it is sent becomes a process of its own, which runs a piece of code as `python -c` would
nursery = '''
import contextlib, importlib, json, os, signal, sys, warnings
os.environ['PYTORCH_NVML_BASED_CUDA_CHECK'] = '1' # asking does not yet use the GPU
import torch
if not torch.cuda.is_available(): # a process that used a GPU cannot be divided
    import fastai.vision.all, kornia, matplotlib.pyplot, pydantic, safetensors.torch, sklearn.cluster, sklearn.datasets
    for o in ('cv2','huggingface_hub.hf_api','ipywidgets','jinja2','nbdev.test'):
        with contextlib.suppress(ImportError): importlib.import_module(o)

def begin(code, argv, env, cwd, out, err, ignore, ends):
    "What a process begins with; the code that it is to run"
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGCHLD])
    for o in ignore: signal.signal(o, signal.SIG_IGN)
    os.setsid()
    os.environ.clear()
    os.environ.update(env)
    os.chdir(cwd)
    if env.get('PYTHONWARNINGS') == 'ignore': warnings.simplefilter('ignore')
    for n,o in enumerate((os.open(os.devnull, os.O_RDONLY), *(os.open(o, os.O_WRONLY|os.O_CREAT|os.O_APPEND) for o in (out, err)))): os.dup2(o, n), os.close(o)
    sys.argv,sys.orig_argv = ['-c', *argv],[sys.executable, '-c', code, *argv]
    return code

running = {}
def reap(*args):
    with contextlib.suppress(ChildProcessError):
        while (o := os.waitpid(-1, os.WNOHANG))[0]:
            with open(running.pop(o[0]), 'w') as f: f.write(f'{os.waitstatus_to_exitcode(o[1])} ')
signal.signal(signal.SIGCHLD, reap)
for line in iter(sys.stdin.readline, ''):
    new = json.loads(line)
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGCHLD])
    pid = os.fork()
    if not pid: break
    running[pid] = new['ends']
    signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGCHLD])
    print(pid, flush=True)
else: sys.exit()
exec(compile(begin(**new), '<string>', 'exec'), dict(__name__='__main__'))
'''

class Process:
    "A process of the nursery, with what tests need of `Popen`"
    def __init__(self, pid, ends): self.pid,self.ends,self.returncode = pid,ends,None
    def poll(self): # the number is whole once the space behind it is there
        if self.returncode is None and self.ends.exists() and (said := self.ends.read_text()).endswith(' '): self.returncode = int(said)
        return self.returncode
    def wait(self, timeout=300):
        end = time.monotonic()+(timeout or 1e9)
        while self.poll() is None:
            if time.monotonic() > end: raise subprocess.TimeoutExpired(f'process {self.pid}', timeout)
            time.sleep(.002)
        return self.returncode
    def send_signal(self, sig):
        if self.poll() is None:
            with suppress(ProcessLookupError): os.kill(self.pid, sig)
    def terminate(self): self.send_signal(signal.SIGTERM)
    def kill(self): self.send_signal(signal.SIGKILL)

@pytest.fixture(scope='session')
def python(tmp_path_factory):
    "`python(code, *argv, out, err, cwd, env, ignore)` starts what `python -c` would, without the seconds that PyTorch and fastai take to import"
    at,started = tmp_path_factory.mktemp('processes'),[]
    env = dict(os.environ, FASTAI_HOME=str(tmp_path_factory.mktemp('fastai')), MPLCONFIGDIR=str(tmp_path_factory.getbasetemp()/'matplotlib'), PYTHONPATH=str(root))
    with subprocess.Popen([sys.executable, '-c', nursery], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=env) as p:
        def start(code, *argv, out=os.devnull, err=None, cwd=None, env=None, ignore=()):
            ends,env = at/f'{len(started)}',dict(os.environ, PYTHONPATH=str(root), PYTHONWARNINGS='ignore') | (env or {}) # without those that are None
            new = dict(code=code, argv=[str(o) for o in argv], env={k: str(v) for k,v in env.items() if v is not None}, cwd=str(cwd or os.getcwd()), out=str(out), err=str(err or out), ignore=[int(o) for o in ignore], ends=str(ends))
            print(json.dumps(new), file=p.stdin, flush=True)
            started.append(Process(int(p.stdout.readline()), ends))
            return started[-1]
        yield start
        for o in started: o.kill()
        p.stdin.close()

@pytest.fixture
def run(capfd, tmp_path, monkeypatch):
    "`run(command, *argv)` in a folder of its own: exit status, and what it said"
    from redo.command import run_command
    monkeypatch.chdir(tmp_path)
    def _run(command, *argv): return run_command(command.__wrapped__, [str(o) for o in argv]),capfd.readouterr()
    return _run

@pytest.fixture
def with_pictures(tmp_path, monkeypatch, capfd):
    "`with_pictures(folder)` makes a folder with eight pictures and gives `run(command, *argv)`: exit status, stdout and stderr"
    def begin(folder):
        from PIL import Image
        from redo.command import run_command
        from redo.data.toy import make_digits
        monkeypatch.chdir(tmp_path)
        (tmp_path/folder).mkdir()
        for i,x in enumerate(make_digits(8, 32, seed=1)[0]): Image.fromarray(x.permute(1,2,0).numpy()).save(tmp_path/folder/f'{i}.png')
        return lambda f,*argv: (run_command(f.__wrapped__, [str(o) for o in argv]), *capfd.readouterr())
    return begin
