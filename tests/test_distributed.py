"Two processes that train together give the losses of one with the whole batch"
import json, socket, sys, warnings
from functools import lru_cache
from pathlib import Path
import pytest

# Adam makes full steps of gradients that are nothing but rounding, so the learning rates are small
slow = dict(lr_mask=1e-5, lr_regions=1e-5, lr_latent=1e-5, lr_disc=1e-5)
cases = dict(paper=dict(recipe='paper', **slow), robust=dict(recipe='robust', nf_mask=8, nf_disc=8, collapse=0., bf16=False, w_area=1., min_area=.45, w_binary=1., ema=.9, **slow),
    options=dict(recipe='paper', model='redo_robust', freeze_disc=True, reuse_fakes=True, shared_disc_pass=True, channels_last=True, fused=True,
        adversarial='relativistic', r1=1., r1_every=2, color=1., redraws='one', shift=.125, reg='concrete_pdf', w_area=1., min_area=.4175, **slow),
    pairs=dict(recipe='paper', model='redo_robust', adversarial='relativistic', **slow),
    turn=dict(recipe='paper', model='redo_robust', redraws='turn', fold=True, shared_disc_pass=True, **slow),
    photos=dict(recipe='photos', adversarial='relativistic', nf_mask=8, nf_disc=8, nf_gen=4, bf16=False, practice=2, hold={'mask': 2}, views_from=1, binary_steps=4, w_reg=5., **slow),
    collapse=dict(recipe='paper', w_z=0., collapse=.9, restarts=1, **slow))
argv = 'digits --steps 4 --set nf=4,bf16=false,lr_mask=1e-5,lr_regions=1e-5,lr_latent=1e-5,lr_disc=1e-5 --device cpu --no-previews --no-progress'.split()

@lru_cache
def digits():
    "The digits, which are drawn once"
    from redo.data.spec import get_source
    source = get_source('digits')
    source.pictures = lru_cache(source.pictures)
    return source

def learner(out, name, **kw):
    "A tiny learner of one case"
    import redo.data.toy
    from redo.data.loaders import redo_dataloaders
    from redo.train.learner import redo_learner
    dls = redo_dataloaders(digits(), bs=4, device='cpu', flip=True, crop=1.125, progress=False)
    dls.valid.bs = 20
    return redo_learner(dls, nf=8, bs=4, checkpoint=out/f'{name}.pth', **cases[name], **kw)

def bare(learn):
    "Neither bars nor lines"
    learn.remove_cbs([cb for cb in learn.cbs if cb.name == 'progress'])
    learn.logger = lambda *args: None
    return learn

def scenes(out):
    "A model of scenes, with a schedule, a rule of the rate and a bound on gradients: losses, and scores from what is known of each scene"
    from redo.data.loaders import redo_dataloaders
    from redo.data.shapes import ShapesSource
    from redo.study.run import run_scores
    from redo.train.learner import redo_learner
    ShapesSource.n = 40
    dls = redo_dataloaders('shapes', size=16, bs=4, device='cpu', needs=(), progress=False)
    own = {'schedule.n_iters': 'itr_to(2:1:2)', 'rule': 'decay(3,10)', 'clip': 1., 'warm': 0, 'decay': 0, 'lr': 1e-5}
    bare(learn := redo_learner(dls, 4, 'slot_attention_small', nf=8, hidden=8, ups=1, bs=4, checkpoint=out/'scenes.pth', **own)).fit_steps(6, every=3)
    rows = [{k: v for k,v in o.items() if k != 'seconds'} for o in learn.loss_history.scores]
    of = {f'{t} {v} {k}': n for t,o in run_scores(learn.model, dls)['of'].items() for v,w in o.items() for k,n in w.items()}
    return learn.loss_history.steps,[*rows, of],[learn.best_checkpoint.step, len(of)]

def train(out):
    "All cases, six steps each; for resume also half a run; the loader of the last is fastai's own"
    import torch
    from fastai.data.core import DataLoaders
    from redo.data.toy import digits_arrays
    from redo.train.learner import redo_learner
    from redo.train.phases import StepBudget
    res = {}
    for name in cases:
        bare(learn := learner(out, name)).fit_steps(6, every=3)
        if 'adversarial' in cases[name]: # only differences of logits matter: the last bias has no gradient but rounding
            for o in learn.loss_history.steps+learn.loss_history.scores: o['disc_fake'] -= o.pop('disc_real')
        res[name] = learn.loss_history.steps,[{k: v for k,v in o.items() if k != 'seconds'} for o in learn.loss_history.scores],getattr(learn, 'collapse_guard', learn).__dict__.get('events')
    bare(learn := learner(out, 'paper')).checkpoint.path = out/'half.pth'
    learn.fit(1, cbs=StepBudget(6, 3))
    res['scenes'] = scenes(out)
    x = digits_arrays('train', 32)[0][:24].float()/127.5-1
    bare(learn := redo_learner(DataLoaders.from_dsets([(o,) for o in x], [(o,) for o in x[:8]], bs=8, shuffle=False, num_workers=0, device='cpu'), recipe='paper', nf=8)).fit(1)
    res['fastai'] = learn.loss_history.steps,[],None
    return res

def main(out):
    "What each of the processes does"
    from redo.cli import redo_train, run_command
    from redo.ranks import is_main, start_ranks
    start_ranks('cpu')
    res = train(out)
    if is_main(): (out/'two.json').write_text(json.dumps(res))
    if run_command(redo_train.__wrapped__, [*argv, '--out', str(out/'odd'), '--bs', '3']) != 1: sys.exit('a batch of 3 was shared by 2')
    sys.exit(run_command(redo_train.__wrapped__, [*argv, '--out', str(out/'run'), '--bs', '4', '--results', str(out/'results.jsonl')]))

def close(a, b):
    "Largest difference of two lists of rows, in units of 1 or of the value where that is larger"
    assert [list(o) for o in a] == [list(o) for o in b]
    return max((abs(v-q[k])/max(1, abs(v)) for r,q in zip(a, b) for k,v in r.items()), default=0.)

def test_two_processes(tmp_path, python):
    "Losses, scores and restarts of every case, resume by one process, the command, and a batch that cannot be shared"
    import pandas as pd
    from redo.cli import redo_train, run_command
    one,two = tmp_path/'one',tmp_path/'two'
    one.mkdir(), two.mkdir()
    with socket.socket() as s: # as torchrun tells them (nbs/03_ranks runs that itself)
        s.bind(('127.0.0.1', 0))
        env = dict(MASTER_ADDR='127.0.0.1', MASTER_PORT=s.getsockname()[1], WORLD_SIZE=2, LOCAL_WORLD_SIZE=2)
    code = 'import runpy, sys; runpy.run_path(sys.argv[1], run_name="__main__")'
    ps = [python(code, __file__, two, out=tmp_path/'said.txt', err=tmp_path/'err.txt', env=env | dict(RANK=i, LOCAL_RANK=i)) for i in range(2)]
    try:
        want = train(one)
        assert run_command(redo_train.__wrapped__, [*argv, '--bs', '4', '--out', str(one/'run')]) == 0
        rcs = [p.wait(300) for p in ps]
    finally:
        for p in ps: p.kill()
    said,err = [(tmp_path/f'{o}.txt').read_text() for o in ('said','err')]
    assert rcs == [0,0], err
    got = json.loads((two/'two.json').read_text())
    diff = {k: (close(want[k][0], got[k][0]), close(want[k][1], got[k][1])) for k in want}
    assert max(map(max, diff.values())) < 1e-5, diff
    assert [len(o[0]) for o in want.values()] == [6]*(len(cases)+1)+[3]
    events = [[e['action'] for e in o['collapse'][2]] for o in (want,got)]
    assert events == [['restarting','stopping']]*2, events
    assert [*want['scenes'][2]] == [*got['scenes'][2]] and want['scenes'][2][1] > 40, got['scenes'][2] # the same state is the best; grounds, materials, shapes, sizes and colors
    assert [o['schedule.n_iters'] for o in got['scenes'][0]] == [1,1,1,2,2,2]
    assert said.count('collapsed at step') == 2 and said.count('iou_set') == 1, said # printed by one process
    assert 'redo-train: a batch of 3 cannot be shared evenly by 2 processes: use a multiple of 2 as batch size\n' in err, err
    assert not (two/'odd').exists()
    # one process goes on with what two have written
    again = bare(learner(one, 'paper').resume(two/'half.pth'))
    assert again.model.step == 3
    again.fit_steps(6, every=3)
    assert close(want['paper'][0], again.loss_history.steps) < 1e-5
    # the command: same losses, written once
    rows = [pd.read_csv(o/'run/losses.csv').to_dict('records') for o in (one,two)]
    assert len(rows[0]) == 4 and close(*rows) < 1e-5
    assert len((two/'results.jsonl').read_text().splitlines()) == 1
    files = [sorted(f.name for f in (o/'run').rglob('*')) for o in (one,two)]
    assert files[0] == files[1] and 'summary.json' in files[1], files

if __name__ == '__main__':
    warnings.filterwarnings('ignore')
    main(Path(sys.argv[-1]))
