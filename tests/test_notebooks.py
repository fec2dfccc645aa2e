"Every notebook runs from top to bottom, each in a process of its own, so that no state of one reaches another"
import json, os
import pytest
from filelock import FileLock

# What the process of a notebook runs
runner = '''
import json, sys
import nbdev.test
from nbdev.config import get_config
notebook,skips,*flags = sys.argv[1:]

class Shell(nbdev.test.CaptureShell):
    def __init__(self, *args, **kwargs): super().__init__(*args, mpl_format='png', **kwargs) # nobody looks at the figures: one dot a pixel will do
    def run_all(self, nb, *args, **kwargs):
        Shell.cells = [o for o in nb.cells if o.cell_type == 'code']
        for o in Shell.cells: o.outputs = []
        return super().run_all(nb, *args, **kwargs)
nbdev.test.CaptureShell = Shell

cfg = get_config()
passed,secs = nbdev.test.test_nb(notebook, skip_flags=cfg.tst_flags, force_flags=flags, basepath=cfg.config_path, cell_timeout=None if flags else cfg.cell_timeout) # slow cells take what they take
text = [''.join(o.get('text', '')) for c in getattr(Shell, 'cells', []) for o in c.outputs]
with open(skips, 'w') as f: json.dump([l for o in text for l in o.splitlines() if l.startswith('skipped: ')], f)
sys.exit(not passed)
'''

@pytest.fixture
def outcome(notebook, python, request, tmp_path, tmp_path_factory):
    "What a notebook does when it runs; it runs once, for whichever test and worker asks first"
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if os.environ.get('PYTEST_XDIST_WORKER') else base)/'notebooks'
    folder.mkdir(exist_ok=True)
    name = '.'.join(notebook.relative_to(request.config.rootpath/'nbs').with_suffix('').parts)
    file,said,skips = folder/f'{name}.json',tmp_path/'said.txt',tmp_path/'skips.json'
    own = {o: os.environ.get(o) for o in ('PYTHONPATH','PYTHONWARNINGS')}
    with FileLock(folder/f'{name}.lock'):
        if not file.exists():
            failed = python(runner, notebook, skips, *request.config.getoption('--flags').split(), out=said, env=own).wait(None)
            file.write_text(json.dumps(dict(failed=failed, said=said.read_text(errors='replace'), skipped=json.loads(skips.read_text()) if skips.exists() else [])))
    return json.loads(file.read_text())

def test_runs(notebook, outcome):
    "No cell fails, those flagged `slow` or `cuda` left out"
    if outcome['failed']: pytest.fail(f"{notebook.name}\n{outcome['said']}", pytrace=False)

def test_complete(notebook, outcome):
    "Counts as skipped where a notebook had nothing to compare with, or to work on"
    if outcome['failed']: pytest.skip('the notebook did not come to its end')
    if outcome['skipped']: pytest.skip('; '.join(sorted({o.removeprefix('skipped: ') for o in outcome['skipped']})))
