"One command from a folder of pictures to a model: what it says on the way, what it leaves, and what it leaves where it is stopped"
import os, re, signal
from pathlib import Path
import pytest
from PIL import Image
from redo.cli import redo_segment, redo_teach, redo_train
from redo.core import model_class

lesson = '--size 32 --net-size 32 --nf-mask 8 --n-res 0 --bs 4 --teacher kmeans --device cpu --no-test'.split()

@pytest.fixture
def shell(with_pictures):
    "`shell(command, *argv)` in a folder with eight pictures"
    return with_pictures('my pictures')

def honest(card, tmp_path):
    "Nothing of the machine, of another model, or of a licence that we know nothing of"
    return not re.search(rf'{re.escape(str(tmp_path))}|flowers|unstated|unknown licence|{re.escape(str(Path.home()))}/', card)

def test_told_and_left(shell, tmp_path):
    rc,said,err = shell(redo_teach, tmp_path/'my pictures', '--out', 'taught', *lesson, '--steps', 14)
    assert (rc, err) == (0, '') and re.search(r'after 10 steps: .+ for the other 4 ', said), said
    assert Image.open('taught/masks.png').size and 'masks.png' in said
    card = Path('taught/weights/README.md').read_text()
    assert card.startswith('---\nlibrary_name: redo\n') and '\n# taught\n' in card and '`folder:my pictures`' in card and honest(card, tmp_path), card
    assert shell(redo_segment, 'my pictures', '--model', 'taught', '--device', 'cpu', '--no-progress')[0] == 0

def test_stopped_and_usable(shell, monkeypatch, tmp_path):
    student,calls = model_class('student'),[]
    real = student.losses
    def losses(self, *args, **kw):
        calls.append(0)
        if len(calls) == 6: os.kill(os.getpid(), signal.SIGINT)
        return real(self, *args, **kw)
    argv = ('my pictures', '--out', 'taught', *lesson, '--steps', 10)
    with monkeypatch.context() as m:
        m.setattr(student, 'losses', losses)
        rc,_,err = shell(redo_teach, *argv)
    assert rc == 130 and err.count('\n') == 1 and 'stopped after 6 of 10 steps' in err, err
    card = Path('taught/weights/README.md').read_text()
    assert Image.open('taught/masks.png').size and 'stopped after 6 of 10 steps' in card and honest(card, tmp_path)
    assert shell(redo_segment, 'my pictures', '--model', 'taught', '--device', 'cpu', '--no-progress')[0] == 0
    assert shell(redo_teach, *argv)[0] == 0 and 'stopped' not in Path('taught/weights/README.md').read_text()

def test_train_points_to_teach(shell):
    rc,said,err = shell(redo_train, 'my pictures', '--out', 'run', '--size', 32, '--steps', 12, '--bs', 4, '--set', 'nf=4,nf_mask=8,collapse=0',
        '--device', 'cpu', '--no-previews')
    assert rc == 0 and err == '' and "12 steps of recipe robust are to come" in said and "redo-teach 'my pictures'" in said, (said, err)
    assert said.index('redo-teach') < said.index('after 10 steps: ') < said.index('step 12 of 12')
