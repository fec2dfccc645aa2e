"Every notebook runs from top to bottom, each in a process of its own, so that no state of one reaches another"
import subprocess, sys
import pytest

run = '''
import sys
from nbdev.config import get_config
from nbdev.test import test_nb
cfg = get_config()
passed,secs = test_nb(sys.argv[1], skip_flags=cfg.tst_flags, force_flags=sys.argv[2:], basepath=cfg.config_path, cell_timeout=None if sys.argv[2:] else cfg.cell_timeout) # slow cells take what they take
sys.exit(not passed)
'''

def test_runs(notebook, request):
    "No cell fails, those flagged `slow` or `cuda` left out"
    flags = request.config.getoption('--flags').split()
    res = subprocess.run([sys.executable, '-c', run, notebook, *flags], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors='replace')
    if res.returncode: pytest.fail(f'{notebook.name}\n{res.stdout}', pytrace=False)
