"redo-teach without --teacher: one is chosen without labels, once, and kept"
import json, os
from pathlib import Path
import pytest
from PIL import Image
from redo.cli import redo_teach
from redo.core import model_class
from redo.data.spec import get_source

lesson = '--size 32 --net-size 32 --nf-mask 8 --n-res 0 --bs 4 --steps 3 --device cpu --no-test --no-previews --no-progress'.split()

@pytest.fixture
def teach(with_pictures):
    "`teach(*argv)` in a folder with eight pictures"
    run = with_pictures('few')
    return lambda *argv: run(redo_teach, *argv, *lesson)

def told(folder): return json.loads(Path(folder, 'summary.json').read_text())

def test_auto_is_the_default_and_says_why(teach):
    rc,said,err = teach('few', '--out', 'a', '--results', 'r.jsonl')
    assert (rc, err) == (0, '')
    choice,s,line = json.loads(Path('a/choice.json').read_text()),told('a'),json.loads(Path('r.jsonl').read_text())
    for o in (s, line): assert {k: o[k] for k in choice} == choice
    assert s['teacher'] == 'auto' and choice['teacher_chosen'] in [o['teacher'] for o in choice['teacher_table']]
    assert f"teacher: {choice['teacher_why']}" in said.splitlines()
    assert line['changes']['data.inputs.pseudo'] == f"{choice['teacher_chosen']}@32"
    card = Path('a/weights/README.md').read_text()
    assert f"`{choice['teacher_chosen']}` (chosen without labels)" in card and 'auto' not in card

def test_not_chosen_twice(teach, monkeypatch):
    student = model_class('student') # the class that is trained, whoever registered it last
    real,calls = student.losses,[]
    def losses(self, *args, **kw):
        calls.append(0)
        if len(calls) == 2: raise KeyboardInterrupt
        return real(self, *args, **kw)
    with monkeypatch.context() as m:
        m.setattr(student, 'losses', losses)
        rc,_,err = teach('few', '--out', 'a')
    assert rc == 130 and err.count('\n') == 1, (rc, err, len(calls))
    kept = Path('a/choice.json').read_bytes()
    with monkeypatch.context() as m: # whatever would be chosen now
        m.setattr('redo.study.teach.choose_teacher', lambda *args, **kw: 1/0)
        assert teach('few', '--out', 'a')[0] == 0
    assert Path('a/choice.json').read_bytes() == kept
    assert teach('few', '--out', 'b')[0] == 0
    assert Path('a/weights/model.safetensors').read_bytes() == Path('b/weights/model.safetensors').read_bytes()

def test_a_named_teacher_is_taken(teach, monkeypatch):
    monkeypatch.setattr('redo.study.teach.choose_teacher', lambda *args, **kw: 1/0)
    assert teach('few', '--out', 'a', '--teacher', 'kmeans')[0] == 0
    assert not Path('a/choice.json').exists() and not {'teacher_chosen','teacher_why','teacher_table'} & set(told('a'))

def test_nothing_to_choose_from(teach):
    Path('black').mkdir()
    for i in range(8): Image.new('RGB', (32,32)).save(f'black/{i}.png')
    rc,said,err = teach('black', '--out', 'a')
    assert rc == 1 and err.count('\n') == 1 and 'no teacher has a plausible mask' in err and not os.path.exists('a')
    rc,said,err = teach('few', '--out', 'a', '--seed', str(2**64))
    assert rc == 1 and err.count('\n') == 1 and 'seed' in err and not os.path.exists('a')

def test_the_choice_is_cheap(teach, monkeypatch):
    "A teacher of few pictures cuts each once, and the lesson is as long as they want"
    import redo.use.pseudo as pseudo
    real,cut = pseudo._margin_grabcut,[]
    def count(*args, **kw): cut.append(kw['margin']); return real(*args, **kw)
    def stop(*args, **kw): raise KeyboardInterrupt
    monkeypatch.setattr(pseudo, '_margin_grabcut', count)
    monkeypatch.setattr(pseudo, 'pseudo_labels', lambda *args: 1/0) # the choice has made them
    at = lesson.index('--steps')
    monkeypatch.setitem(globals(), 'lesson', lesson[:at]+lesson[at+2:])
    with monkeypatch.context() as m:
        m.setattr(model_class('student'), 'losses', stop)
        rc,_,err = teach('few', '--out', 'a')
    assert rc == 130 and json.loads(Path('a/run.json').read_text())['steps'] == 150, err
    n = len(get_source('few').names['train'])
    assert {o: cut.count(o) for o in cut} == {.02: n, .05: n, .1: n, .15: n}
