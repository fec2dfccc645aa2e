"A line of results is enough to make its run again, to the last bit"
import json, re, shlex, sys
from pathlib import Path
import numpy as np, pytest
from PIL import Image

options = '--size 32 --steps 4 --bs 2 --set nf=4,nf_mask=4,nf_disc=4 --seed 3 --device cpu --no-progress --no-previews'.split()
command = 'import sys; from redo.cli import redo_train; sys.exit(redo_train())'

def pictures(folder, n=16):
    "A few pictures with masks: a square on a background"
    rng = np.random.default_rng(0)
    for o in ('images','masks'): (folder/o).mkdir(parents=True, exist_ok=True)
    for i in range(n):
        x,y = rng.integers(4, 16, 2)
        mask = np.zeros((32,32), 'uint8')
        mask[y:y+12,x:x+12] = 255
        Image.fromarray(mask).save(folder/'masks'/f'{i}.png')
        Image.fromarray((rng.integers(0, 99, (32,32,3)) + mask[...,None]//2).astype('uint8')).save(folder/'images'/f'{i}.png')

def lines(file): return [json.loads(o) for o in file.read_text().splitlines()]

@pytest.fixture
def again(tmp_path, monkeypatch, capsys):
    "Call `redo-experiment --again`; exit status, stdout, stderr"
    import torch
    from redo.cli import redo_experiment, run_command
    torch.set_num_threads(1)
    monkeypatch.chdir(tmp_path)
    def _f(*argv):
        capsys.readouterr()
        return run_command(redo_experiment.__wrapped__, ['--again', *map(str, argv), '--no-progress']), *capsys.readouterr()
    return _f

def test_again(tmp_path, monkeypatch, again, python):
    "A run of a command, made again in another process from its line alone, after the recipe of that name has changed"
    from redo.models.redo_robust import RobustReDO
    from redo.train.recipes import get_recipe
    pictures(tmp_path/'pics')
    argv = ['pics', *options, '--out', tmp_path/'a run', '--results', 'results/my.jsonl', '--root', '/some/data']
    assert python(command, *argv, out=(log := tmp_path/'log.txt'), cwd=tmp_path).wait() == 0, log.read_text()
    text = (tmp_path/'results/my.jsonl').read_text()
    line, = lines(tmp_path/'results/my.jsonl')
    assert str(tmp_path) not in text and '/some' not in text
    assert shlex.split(line['command']) == ['python', '-c', command, 'pics', *options, '--out', 'a run', '--results', 'results/my.jsonl', '--root', 'data']
    assert re.fullmatch(r'\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\+00:00', line['date']) and line['processor'] and line['threads'] == 1
    assert line['config']['recipe'] == json.loads((tmp_path/'a run/summary.json').read_text())['recipe'] and line['config']['recipe']['train']['steps'] == 4
    losses = (tmp_path/'a run/losses.csv').read_text().splitlines()
    assert {k: float(v) for k,v in zip(losses[0].split(','), losses[-1].split(','))} == line['losses']
    monkeypatch.setitem(RobustReDO.recipes, 'robust', RobustReDO.recipes['robust'] | {'w_z': 7., 'lr_mask': .5, 'data.flip': True})
    other = get_recipe('robust')
    assert (other.model.w_z, other.data.flip) == (7., True)
    rc,said,err = again(line['id'][:7])
    assert (rc, err) == (0, '') and 'are the same to the last bit' in said, said
    one,two = tmp_path/'a run',tmp_path/'runs/again'/f"{line['id']}-1"
    for o in ('losses.csv','weights/model.safetensors'): assert (one/o).read_bytes() == (two/o).read_bytes(), o
    new, = lines(two/'result.jsonl')
    for k in ('id','iou_set','iou_per_image','test','losses','curve','config','pictures','recipe'): assert new.get(k) == line.get(k), k
    assert (tmp_path/'results/my.jsonl').read_text() == text

def test_what_differs(tmp_path, again, monkeypatch):
    "Other pictures, and another line: the scores that differ, and what was different"
    from redo.study.run import train_run
    monkeypatch.setattr(sys, 'argv', ['pytest']) # no command of ours
    pictures(tmp_path/'pics')
    train_run('pics', 'run', size=32, steps=2, bs=2, nf=4, nf_mask=4, nf_disc=4, device='cpu', progress=False, previews=False, test=False, results='results/a.jsonl')
    line, = lines(Path('results/a.jsonl'))
    assert line['command'] is None and line['config']['test'] is False and 'test' not in line
    Path('results/b.jsonl').write_text(json.dumps(line | dict(id='odd', commit='abc', versions=line['versions'] | dict(torch='0.1'))) + '\n')
    rc,said,err = again('odd')
    assert rc == 0 and err == '' and 'commit was abc, is ' in said and 'versions.torch was 0.1, is ' in said, said
    for o in ('images','masks'): Image.new('RGB' if o == 'images' else 'L', (32,32)).save(tmp_path/'pics'/o/'new.png')
    rc,said,err = again(line['id'])
    assert rc == 1 and err.count('\n') == 1 and 'are not the same to the last bit; different besides: ' in err and 'pictures was ' in err, err
    assert sorted(o.name for o in (tmp_path/'runs/again').iterdir()) == [f"{line['id']}-1", 'odd-1']

def test_old_lines(tmp_path, again):
    "Lines of earlier versions load, and are refused in one line that says why"
    from redo.study.results import json_lines, load_results
    results = Path(__file__).resolve().parents[1]/'results'
    for f in sorted(results.glob('*.jsonl')):
        rows,bad = json_lines(f)
        if f.name.endswith('-curves.jsonl'): continue
        gone = {o['withdraws'] for o in rows if 'withdraws' in o}
        assert bad == 0 and set(load_results(f).get('id', ())) >= {o['id'] for o in rows if 'id' in o} - gone, f
    rc,said,err = again('f5aca0e6', '--results', results)
    assert rc == 1 and said == '' and err.count('\n') == 1 and "ablation.jsonl: 'f5aca0e6bb14' cannot be run again: its line has no 'config'" in err, err
    assert not list(tmp_path.glob('runs*'))
