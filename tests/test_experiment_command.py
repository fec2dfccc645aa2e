"What the ClevrTex benchmark's command offers, through the commands here: tags, drawn seeds, schedules, limits, best states, tables"
import json, re
import pandas as pd, pytest, torch
from redo.cli import redo_evaluate, redo_train
from redo.data.shapes import ShapesSource
from redo.models.slot_attention import SlotAttentionAE
from redo.weights import safe_load

tiny = '--recipe slot_attention_small --size 16 --n-regions 4 --bs 4 --device cpu --no-progress --no-previews'.split()
own = 'nf=8,hidden=8,ups=1,train.optimizer=rmsprop,train.clip=5,train.rule=decay(2,10),warm=0,decay=0,train.schedule.n_iters=itr_to(0.5:2:1)'

@pytest.fixture(autouse=True)
def few(monkeypatch): monkeypatch.setattr(ShapesSource, 'n', 60)

def good(res):
    rc,said = res
    assert (rc, said.err) == (0, ''), said.err
    return said.out

def read(*path): return json.loads(path[0].joinpath(*path[1:]).read_text())

def test_run(run, tmp_path, monkeypatch):
    "A tag and a drawn seed are found everywhere; a run that died goes on with its seed, its schedule and its rule to the same bits"
    said = good(run(redo_train, 'shapes', *tiny, '--steps', 6, '--set', own, '--tag', 'base', '--seed', 'random', '--limit', 20, '--results', 'r.jsonl'))
    whole,seed = tmp_path/'redo-shapes-base-1',int(re.search(r'seed (\d+), drawn at random', said)[1])
    s,cfg,line = read(whole, 'summary.json'),read(whole, 'run.json'),json.loads((tmp_path/'r.jsonl').read_text())
    assert [o['tag'] for o in (s,cfg,line)] == ['base']*3 and [o['seed'] for o in (s,cfg,line)] == [seed]*3
    assert s['n_pictures'] == 20 and line['changes']['train.rule'] == 'decay(2,10)' and s['best_recon_mse'] == min(pd.read_csv(whole/'history.csv').recon_mse)
    assert list(pd.read_csv(whole/'losses.csv')['schedule.n_iters']) == [2]*4+[1]*2
    losses = SlotAttentionAE.losses
    def stop(self, x, phase, step):
        if step == 4: raise KeyboardInterrupt
        return losses(self, x, phase, step)
    with monkeypatch.context() as m:
        m.setattr(SlotAttentionAE, 'losses', stop)
        assert run(redo_train, 'shapes', *tiny, '--steps', 6, '--set', own, '--tag', 'base', '--seed', seed, '--limit', 20)[0] == 130
    again = tmp_path/'redo-shapes-base-2'
    good(run(redo_train, '--resume', '--out', again, '--seed', 'random', '--device', 'cpu', '--no-progress'))
    for o in ('losses.csv','weights/model.safetensors','weights-best/model.safetensors'): assert (again/o).read_bytes() == (whole/o).read_bytes(), o
    a,b = (safe_load(o/'checkpoint-best.pth') for o in (whole,again))
    assert torch.equal(a['rng']['torch'], b['rng']['torch']) and a['callbacks']['LossHistory']['steps'] == b['callbacks']['LossHistory']['steps']

def test_table(run, tmp_path):
    "Several seeds, scored: a row each, the mean and the population's standard deviation, and what is known of materials"
    for seed in (0,1): good(run(redo_train, 'shapes', *tiny, '--epochs', 1, '--set', 'nf=8,hidden=8,ups=1', '--seed', seed, '--tag', 'seeds'))
    names = 'redo-shapes-seeds-1','redo-shapes-seeds-2'
    assert read(tmp_path, names[0], 'summary.json')['steps'] == 12 # 48 pictures in fours
    said = good(run(redo_evaluate, *names, '--by', 'ground_material', '--json', 'both.json', '--device', 'cpu', '--no-progress'))
    a,b = read(tmp_path, 'both.json')['models'].values()
    last = next(o for o in said.splitlines() if o.startswith('mean ± std'))
    for k in ('miou_fg','ari_fg','mse'): assert f'{(a[k]+b[k])/2:.4f} ± {abs(a[k]-b[k])/2:.4f}' in last, (k, last)
    assert said.splitlines()[2].split()[:6] == ['miou_fg','ari_fg','miou','ari','mse','count_accuracy'] and 'ground_material' in said
    assert json.loads(json.dumps(redo_evaluate(model=names[0], device='cpu', progress=False)))['ari'] == a['ari']

def test_mistakes(run):
    "One line each"
    for argv,why in ((['--seed','lucky'], '--seed lucky: use a whole number, or random'), (['--tag','a/b'], "tag='a/b': use text like base"), (['--steps',3,'--epochs',1], 'give one of them'),
            (['--limit',3], '3 training pictures are fewer than a batch of 4'), (['--limit',0], 'limit=0'), (['--set','train.schedule.shrap=lin(3,0,1)'], "no attribute 'shrap'"),
            (['--set','train.schedule.n_iters=lin(3,2,1)'], 'use to(d:A:B) for whole numbers'), (['--set','train.rule=warm(10)'], 'set train.decay=0'), (['--set','train.rule=cosine'], 'rule='),
            (['--set','train.optimizer=lbfgs'], "optimizer='lbfgs': use adam"), (['--set','train.clip=-1'], 'clip')):
        rc,said = run(redo_train, 'shapes', *tiny, *argv)
        assert rc == 1 and said.err.count('\n') == 1 and why in said.err, (argv, said.err)
