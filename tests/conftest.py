"Tests leave nothing behind and keep to one core per worker"
import json, os, re
from collections import Counter
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
seconds = {'test_grids': 70, 'test_faults': 60, '81_cli': 60, 'test_site': 55, '54_train.learner': 43, 'test_distributed': 40, '71_study.run': 38, 'test_hostile_models': 35,
    'test_explorer': 35, '79_study.teach': 30, '74_study.engine': 28, 'collapse': 25, 'test_folders': 25, '75_study.timing': 23, '76_study.bench': 23, '63_use.features': 22,
    '62_use.onnx': 21, 'own_folder': 21, 'training_step': 20, 'test_law': 20, '50_train.phases': 18, '73_study.compare': 17, 'two_classes': 17, 'mask_regularization': 17,
    '68_use.edit': 14, '36_models.slot_attention': 14, '66_use.choose': 15, '64_use.segment': 15, '78_study.report': 14, '77_study.again': 12, '52_train.resume': 12, '60_use.cut': 11, 'keras_variants': 11}

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
