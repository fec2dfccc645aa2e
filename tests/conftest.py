"Tests leave nothing behind and keep to one core per worker"
import os
from pathlib import Path

root = Path(__file__).resolve().parents[1]
os.chdir(root)
os.environ.update(MPLBACKEND='Agg', OMP_NUM_THREADS='1', MKL_NUM_THREADS='1', TOKENIZERS_PARALLELISM='false', PYTHONDONTWRITEBYTECODE='1')
os.environ.pop('IN_TEST', None)
os.environ['REDO_SHARED'] = str(Path(os.environ.get('REDO_SHARED', '../shared')).resolve())

import pytest
from nbdev.doclinks import nbglob

def pytest_addoption(parser):
    parser.addoption('--flags', default='', help="Cells to run that are otherwise skipped, as in --flags 'slow cuda'")

def pytest_generate_tests(metafunc):
    if 'notebook' in metafunc.fixturenames:
        nbs = sorted(nbglob(root/'nbs', as_path=True))
        metafunc.parametrize('notebook', nbs, ids=[o.relative_to(root/'nbs').with_suffix('').as_posix() for o in nbs])

@pytest.fixture(autouse=True)
def tidy(tmp_path, monkeypatch):
    "Caches in a folder of the test, working folder and environment as before"
    monkeypatch.chdir(root)
    for name in ('REDO_CACHE','FASTAI_HOME','HF_HOME','MPLCONFIGDIR','HYPOTHESIS_STORAGE_DIRECTORY'): monkeypatch.setenv(name, str(tmp_path/name.lower()))
