"Every notebook runs from top to bottom, each in a process of its own, so that no state of one reaches another"
import json, os, subprocess, sys
import pytest
from filelock import FileLock

# Imports what notebooks take from others, which is seconds of work, once; then every line that it is sent becomes a process of its own, which runs a notebook
runner = '''
import contextlib, importlib, json, os, sys
os.environ['PYTORCH_NVML_BASED_CUDA_CHECK'] = '1' # asking does not yet use the GPU
import torch, nbdev.test
if not torch.cuda.is_available(): # a process that used a GPU cannot be divided
    import fastai.vision.all, kornia, matplotlib.pyplot, pydantic, safetensors.torch, sklearn.cluster, sklearn.datasets
    for o in ('cv2','huggingface_hub.hf_api','ipywidgets','jinja2'):
        with contextlib.suppress(ImportError): importlib.import_module(o)
from nbdev.config import get_config

class Shell(nbdev.test.CaptureShell):
    def __init__(self, *args, **kwargs): super().__init__(*args, mpl_format='png', **kwargs) # nobody looks at the figures: one dot a pixel will do
    def run_all(self, nb, *args, **kwargs):
        Shell.cells = [o for o in nb.cells if o.cell_type == 'code']
        for o in Shell.cells: o.outputs = []
        return super().run_all(nb, *args, **kwargs)
nbdev.test.CaptureShell = Shell

def run(notebook, said, skips, flags, env):
    "Exit status; output and what was skipped are in files"
    os.environ.clear()
    os.environ.update(env)
    for n,o in enumerate((os.open(os.devnull, os.O_RDONLY), os.open(said, os.O_WRONLY|os.O_CREAT))): os.dup2(o, n)
    os.dup2(1, 2)
    cfg = get_config()
    passed,secs = nbdev.test.test_nb(notebook, skip_flags=cfg.tst_flags, force_flags=flags, basepath=cfg.config_path, cell_timeout=None if flags else cfg.cell_timeout) # slow cells take what they take
    text = [''.join(o.get('text', '')) for c in getattr(Shell, 'cells', []) for o in c.outputs]
    with open(skips, 'w') as f: json.dump([l for o in text for l in o.splitlines() if l.startswith('skipped: ')], f)
    return int(not passed)

for line in iter(sys.stdin.readline, ''):
    pid = os.fork()
    if not pid: sys.exit(run(**json.loads(line)))
    print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)
'''

@pytest.fixture(scope='session')
def run(tmp_path_factory):
    "Runs a notebook: exit status"
    env = dict(os.environ, FASTAI_HOME=str(tmp_path_factory.mktemp('fastai')), MPLCONFIGDIR=str(tmp_path_factory.getbasetemp()/'matplotlib'))
    with subprocess.Popen([sys.executable, '-c', runner], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=env) as p:
        def _run(**kwargs):
            print(json.dumps(dict(kwargs, env=dict(os.environ))), file=p.stdin, flush=True)
            return int(p.stdout.readline())
        yield _run
        p.stdin.close()

@pytest.fixture
def outcome(notebook, run, request, tmp_path, tmp_path_factory):
    "What a notebook does when it runs; it runs once, for whichever test and worker asks first"
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if os.environ.get('PYTEST_XDIST_WORKER') else base)/'notebooks'
    folder.mkdir(exist_ok=True)
    name = '.'.join(notebook.relative_to(request.config.rootpath/'nbs').with_suffix('').parts)
    file,said,skips = folder/f'{name}.json',tmp_path/'said.txt',tmp_path/'skips.json'
    with FileLock(folder/f'{name}.lock'):
        if not file.exists():
            failed = run(notebook=str(notebook), said=str(said), skips=str(skips), flags=request.config.getoption('--flags').split())
            file.write_text(json.dumps(dict(failed=failed, said=said.read_text(errors='replace'), skipped=json.loads(skips.read_text()) if skips.exists() else [])))
    return json.loads(file.read_text())

def test_runs(notebook, outcome):
    "No cell fails, those flagged `slow` or `cuda` left out"
    if outcome['failed']: pytest.fail(f"{notebook.name}\n{outcome['said']}", pytrace=False)

def test_complete(notebook, outcome):
    "Counts as skipped where a notebook had nothing to compare with, or to work on"
    if outcome['failed']: pytest.skip('the notebook did not come to its end')
    if outcome['skipped']: pytest.skip('; '.join(sorted({o.removeprefix('skipped: ') for o in outcome['skipped']})))
