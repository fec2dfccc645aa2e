"A mistyped name is told before anything heavy is imported, and as the work itself tells it"
import json, subprocess, sys
import pytest
from redo import cli
from redo.command import run_command

mistyped = [('redo_segment', ['nope.jpg']), ('redo_segment', ['nope.jpg','--model','flowers']), ('redo_redraw', ['nope.jpg','--model','flowers']),
    ('redo_segment', ['.','--model','no/such/model']), ('redo_evaluate', ['--model','nope.pth']), ('redo_evaluate', ['--data','my/pictres']),
    ('redo_export', ['--model','nope.pth']), ('redo_teach', ['my/pictres/']), ('redo_teach', ['pictres']), ('redo_train', ['my/pictres-(64,64)']),
    ('redo_train', ['pictres:2']), ('redo_train', ['digits','--init','nope.pth']), ('redo_experiment', ['nope.yml']), ('redo_experiment', ['nope'])]

code = """import contextlib, io, json, sys
from redo import cli
from redo.command import run_command
res = []
for name,argv in json.loads(sys.argv[1]):
    with contextlib.redirect_stderr(io.StringIO()) as err: rc = run_command(getattr(cli, name).__wrapped__, argv)
    res.append((rc, err.getvalue(), [o for o in ('torch','numpy','pandas','PIL') if o in sys.modules]))
print(json.dumps(res))"""

@pytest.fixture(scope='module')
def early(tmp_path_factory):
    "What each command says in a process that has imported nothing yet"
    d = tmp_path_factory.mktemp('early')
    done = subprocess.run([sys.executable, '-c', code, json.dumps(mistyped)], cwd=d, capture_output=True, text=True, timeout=120, check=True)
    return json.loads(done.stdout),list(d.iterdir())

def test_nothing_heavy_is_imported(early):
    said,left = early
    for (name,argv),(rc,err,heavy) in zip(mistyped, said): assert (rc, err.count('\n'), heavy) == (1, 1, []), (name, argv, err)
    assert not left, left

@pytest.mark.parametrize('i', range(len(mistyped)))
def test_the_same_is_said_later(early, i, tmp_path, monkeypatch, capfd):
    "Where PyTorch is there already, the work itself finds it"
    import torch # noqa: what makes the early look unnecessary
    monkeypatch.chdir(tmp_path)
    name,argv = mistyped[i]
    if argv[0] == '.': (tmp_path/'a.jpg').touch()
    assert run_command(getattr(cli, name).__wrapped__, argv) == 1
    late = capfd.readouterr().err
    if name != 'redo_redraw': assert late == early[0][i][1]

def test_extras_before_the_work(tmp_path):
    "Without its extra a command stops before PyTorch is imported, and names a way that works in a clone"
    pre = "import sys\nfor o in ('onnx','onnxscript','distributed','bpy'): sys.modules[o] = None\n"
    asked = [('redo_export', ['--model','flowers']), ('redo_experiment', ['example','--scheduler','tcp://host:8786']), ('redo_render', ['new'])]
    done = subprocess.run([sys.executable, '-c', pre+code, json.dumps(asked)], cwd=tmp_path, capture_output=True, text=True, timeout=60, check=True)
    (rc,err,heavy),(rc2,err2,heavy2),(rc3,err3,heavy3) = json.loads(done.stdout)
    assert (rc, rc2, rc3, heavy, heavy2, heavy3) == (1, 1, 1, [], [], []) and "bpy: pip install '.[render]'" in err3 and "onnx: pip install '.[onnx]'" in err and "distributed: pip install '.[dask]'" in err2
