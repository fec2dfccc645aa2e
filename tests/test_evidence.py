"The rule for failed runs, the results that are kept, and what the reproductions' options refuse"
import math
from pathlib import Path
import pandas as pd, pytest, torch
from redo.core import *
from redo.losses import hard_concrete, regularizer_args
from redo.models.redo_robust import RobustReDO
from redo.study.compare import failed, failed_run, same_runs
from redo.study.results import count_lines, load_results
from redo.train.recipes import get_recipe

root = Path(__file__).resolve().parents[1]
results,constants = root/'results',root/'results'/'constant-iou.csv'
lines = [o for o in sorted(results.glob('*.jsonl')) if not o.stem.endswith('-curves')]

@pytest.mark.parametrize('iou,smallest,bad', [(.9,.3,False), (.9,.019,True), (.399,.3,True), (.41,.02,False), (.1,.3,True), (float('nan'),.3,True), (.9,float('nan'),True)])
def test_failed_run(iou, smallest, bad): assert failed_run(dict(iou_set=iou, min_region_size=smallest), .3) == bad

@pytest.mark.parametrize('hard,bad', [(0.,True), (.019,True), (.02,False), (float('nan'),False)])
def test_failed_hard(hard, bad):
    "Soft areas alone do not see a veil; lines without hard areas are judged by what they have"
    assert failed_run(dict(iou_set=.9, min_region_size=.3, min_hard_size=hard), .3) == bad

def test_failed_table(tmp_path):
    "One table of constant answers serves all pages, without data"
    runs = pd.concat([load_results(o) for o in lines if o.stem in ('ablation','c2mnist','digits3','keras_variants','two_classes')])
    bad = failed(runs, constants)
    assert bad.dtype == bool and 0 < bad.sum() < len(runs) and bad[runs.spec == 'c2mnist'].all() and runs[bad & (runs.spec == 'digits3')].id.tolist() == ['eaeafbca2c33']
    assert not (runs.collapsed.astype(bool) & ~bad).any()  # what a run called collapsed has failed
    with pytest.raises(RedoError, match='has no constant answer of birds at 32 pixels') as e: failed(runs.assign(spec='birds', size=32), constants)
    assert len(str(e.value).splitlines()) == 1

def test_same_runs():
    "The four lines that are one run, and no other of their page"
    d = load_results(results/'ablation.jsonl', results/'mask_regularization.jsonl')
    assert same_runs(d).names.tolist() == [['no conservation','rectified 1','rectified 10','rectified 100']]

def test_kept_lines():
    "Lines that were edited by hand are withdrawn; what follows them is as the run wrote it"
    n = count_lines(*lines)
    assert n['lines'] == n['clean']+n['changed']+n['none'] and n['withdrawn'] >= 8
    base,trials = load_results(results/'baselines.jsonl').set_index('id'),load_results(results/'trials.jsonl')
    assert base.loc['iem-128','seconds_a_picture'] == .41
    assert load_results(results/'flowers17.jsonl').seed.tolist() == [2,0,1] and not trials.run.str.startswith('digits').any()

def test_hard_concrete():
    p = lambda x: .5*x**-1.5*(1-x)**-1.5/(x**-.5+(1-x)**-.5)**2
    flat = lambda a: torch.stack([torch.full((2,4,4), a), torch.full((2,4,4), 1-a)], 1)
    for a in (0.,.2,.5,1.): assert math.isclose(hard_concrete(flat(a), 0).item(), -math.log(p(.1+.8*a)), rel_tol=1e-5, abs_tol=1e-6)
    m = flat(0.).requires_grad_()
    hard_concrete(m).backward()
    assert torch.isfinite(m.grad).all() and hard_concrete(flat(.5)) > hard_concrete(flat(.9))  # undecided pixels cost more

@pytest.mark.parametrize('reg,args,why', [('mean_mse', dict(margin=.1), 'mean_mse takes loc'), ('concrete_pdf', dict(b=0.), 'use a number from 0.001 to 1000'), ('concrete_pdf', dict(eps=.7), 'from 1e-09 to 0.49'),
    ('mean_mse', dict(loc=float('nan')), 'use a number'), (None, dict(loc=.5), 'choose one by reg'), ('mean_mse', {'a\n'*99: 1.}, 'mean_mse takes loc'), ('mean_mse', dict(loc='x'), 'use a number, by name')])
def test_reg_args(reg, args, why):
    with pytest.raises(RedoError, match=why) as e: RobustReDO(2, 32, nf=4, reg=reg, reg_args=args)
    assert len(str(e.value).splitlines()) == 1 and len(str(e.value)) < 250 and 'reg_args' in str(e.value)

def test_reg_args_reach_the_loss():
    r = get_recipe('robust', **{'reg': 'rectified_mean_mse', 'reg_args.margin': .1, 'reg_args.loc': .3})
    assert r.model.reg_args == dict(margin=.1, loc=.3)
    even = torch.stack([torch.full((1,8,8), .8), torch.full((1,8,8), .2)], 1)
    term = RobustReDO(2, 32, **r.model.changed(nf=4, nf_mask=8, nf_disc=8, reg_region=0).model_dump()).mask_terms(even, 0)['reg'][1].item()
    assert math.isclose(term, .5**2-.1**2, rel_tol=1e-5)
    assert regularizer_args('concrete_pdf', dict(a=2., b=.3, eps=1e-3)) == dict(a=2., b=.3, eps=1e-3)
