"A command touches nothing that is not its own, learns from no picture that it drew itself, and shares its folder with nobody"
import json, shutil, subprocess, sys
import pandas as pd, pytest, torch
from PIL import Image
import redo.data.toy
from redo.cli import redo_benchmark, redo_train
from redo.command import run_command
from redo.data.spec import get_source
from redo.files import folder_lock
from redo.models.redo import ReDO
from redo.study.results import load_results

tiny = '--size 32 --steps 8 --bs 2 --set nf=4,nf_mask=4,nf_disc=4,collapse=0 --device cpu --no-progress'.split()

@pytest.fixture
def run(capfd):
    "`run(command, *argv)` gives exit status and what it said on stderr"
    def _run(command, *argv):
        rc = run_command(command.__wrapped__, [str(o) for o in argv])
        return rc, capfd.readouterr().err
    return _run

@pytest.fixture
def photos(tmp_path):
    "A folder of 24 pictures"
    (tmp_path/'photos').mkdir()
    for i,o in enumerate(get_source('digits').pictures('valid', 32).images[:24]): Image.fromarray(o.permute(1,2,0).numpy()).save(tmp_path/'photos'/f'{i:02}.png')
    return tmp_path/'photos'

def tree(folder): return {o.relative_to(folder).as_posix(): o.read_bytes() for o in folder.rglob('*') if o.is_file()}

def one_line(said, *words): assert said.count('\n') == 1 and all(o in said for o in words), said

def stop_at(monkeypatch, step):
    "Ctrl-C in a step"
    old = ReDO.noise
    def noise(self, k, at, device='cpu'):
        if self.training and at == step: raise KeyboardInterrupt
        return old(self, k, at, device)
    monkeypatch.setattr(ReDO, 'noise', noise)

@pytest.mark.parametrize('name', ['masks.png','.gitignore-0a1b2c3d','.checkpoint-0a1b2c3d.pth~','weights/model.safetensors'])
def test_foreign_folder(run, tmp_path, name):
    "A folder that holds something else is refused, and stays as it was"
    out = tmp_path/'out'
    (out/name).parent.mkdir(parents=True)
    (out/name).write_text('somebody needs this')
    before = tree(out)
    for more in ((), ('--resume',)):
        rc,said = run(redo_train, 'digits', *tiny, '--out', out, *more)
        assert rc == 1
        one_line(said, 'is not empty and not ours', name.split('/')[0])
    assert tree(out) == before

def test_empty_name(run, tmp_path, monkeypatch):
    "No name is not the current folder"
    monkeypatch.chdir(tmp_path)
    (tmp_path/'.git').mkdir()
    (tmp_path/'.git'/'.index-0a1b2c3d').write_text('x')
    for o in ('', ' '):
        rc,said = run(redo_train, 'digits', *tiny, '--out', o)
        assert rc == 2
        one_line(said, '--out is empty')
    assert list(tree(tmp_path)) == ['.git/.index-0a1b2c3d']

def test_resume_keeps_foreign_files(run, tmp_path, monkeypatch):
    "Only what the run itself left half-written is removed, and only when it goes on"
    out = tmp_path/'out'
    with monkeypatch.context() as m:
        stop_at(m, 5)
        assert run(redo_train, 'digits', *tiny, '--out', out)[0] == 130
    mine = ['.checkpoint-a1b2c3_d.pth','.losses-0a1b2c3d.csv','weights/.model-0a1b2c3d.safetensors','previews/.preview_000004-0a1b2c3d.png']
    theirs = ['.vimrc-abcdefgh','.notes-0a1b2c3d.txt','.checkpoint-0a1b2c3d.bak','weights/.checkpoint-0a1b2c3d.pth','notes/.losses-0a1b2c3d.csv']
    for o in mine+theirs:
        (out/o).parent.mkdir(exist_ok=True)
        (out/o).write_text('')
    assert run(redo_train, 'digits', *tiny, '--out', out)[0] == 1 # not without --resume
    assert all((out/o).exists() for o in mine+theirs)
    assert run(redo_train, '--resume', '--out', out, '--device', 'cpu', '--no-progress')[0] == 0
    assert [o for o in mine+theirs if (out/o).exists()] == theirs

def test_own_previews_are_no_data(run, photos, monkeypatch):
    "Runs in the folder of the photographs learn from the photographs alone, when resumed, too"
    monkeypatch.chdir(photos)
    assert run(redo_train, '.', *tiny, '--out', 'one') == (0, '')
    rc,said = run(redo_train, '.', *tiny, '--out', 'two')
    assert rc == 0
    one_line(said, 'left out', 'one')
    assert any((photos/'one'/'previews').iterdir())
    with monkeypatch.context() as m:
        stop_at(m, 5)
        assert run(redo_train, '.', *tiny, '--out', 'three')[0] == 130
    assert run(redo_train, '--resume', '--out', 'three', '--device', 'cpu', '--no-progress')[0] == 0
    for o in ('two','three'): assert (photos/o/'losses.csv').read_bytes() == (photos/'one/losses.csv').read_bytes()

def test_changed_pictures(run, photos, tmp_path, monkeypatch):
    "A resumed run says that its pictures are others, and its summary keeps it"
    out = tmp_path/'out'
    with monkeypatch.context() as m:
        stop_at(m, 5)
        assert run(redo_train, photos, *tiny, '--out', out)[0] == 130
    Image.new('RGB', (32,32)).save(photos/'23.png')
    rc,said = run(redo_train, '--resume', '--out', out, '--device', 'cpu', '--no-progress')
    assert rc == 0
    one_line(said, 'the pictures have changed since')
    s = json.loads((out/'summary.json').read_text())
    assert len(s['pictures_before']) == 1 and s['pictures_before'][0] != s['pictures']

def test_steps_by_set(run, tmp_path):
    "`--set steps=` is `--steps`; both at once must agree"
    argv = [o for o in tiny if o not in ('--steps','8')]
    argv[argv.index('--set')+1] += ',steps=3'
    assert run(redo_train, 'digits', *argv, '--out', tmp_path/'a') == (0, '')
    assert len(pd.read_csv(tmp_path/'a/losses.csv')) == 3
    full = [o.replace(',steps=3', ',train.steps=3') for o in argv]
    for o,word in ((argv,'--set steps=3'), (full,'--set train.steps=3')):
        rc,said = run(redo_train, 'digits', *o, '--steps', 4, '--out', tmp_path/'b')
        assert rc == 1
        one_line(said, '--steps 4', word)
    for o in ('bs=4','steps=4','train.bs=4'):
        rc,said = run(redo_benchmark, '--quick', '--set', o)
        assert rc == 1
        one_line(said, o)

def test_one_process_a_folder(run, tmp_path):
    "A folder that is in use is refused; the same configuration has the same id"
    out = tmp_path/'out'
    with folder_lock(out):
        rc,said = run(redo_train, 'digits', *tiny, '--out', out)
    assert rc == 1 and list(tree(out)) == ['.redo.lock']
    one_line(said, 'in use by another process')
    for o in ('out','again','other'): assert run(redo_train, 'digits', *tiny, '--out', tmp_path/o, '--results', tmp_path/'r.jsonl', '--seed', int(o == 'other')) == (0, '')
    a,b,c = [json.loads((tmp_path/o/'summary.json').read_text())['id'] for o in ('out','again','other')]
    assert a == b != c and list(load_results(tmp_path/'r.jsonl').id) == [b,c]
