"Parts go through trainer, resume, evaluator and export like any other model, with foregrounds from wherever"
import json, math, os, subprocess, sys
from pathlib import Path
import numpy as np, pytest, torch
from PIL import Image
from redo.cli import redo_evaluate, redo_segment, redo_train
from redo.core import RedoError
from redo.data.images import read_mask
from redo.data.loaders import redo_dataloaders
from redo.models.parts import Parts
from redo.train.learner import redo_learner
from redo.train.recipes import get_recipe
from redo.schedules import parse_rule
from redo.use.cut import load_decomposer, segment_image
from redo.use.methods import method_model
from redo.use.onnx import OnnxMasks, export_onnx
import redo.use.parts, redo.use.refine # what a `Segmentation` can do

def good(res):
    rc,said = res
    assert (rc, said.err) == (0, ''), said.err

small = 'net=unet,nf=4,levels=2,parts=3,features=random'
own = ['--model', 'parts', '--recipe', 'parts_small', '--size', '32', '--steps', '6', '--bs', '4', '--device', 'cpu', '--no-progress', '--set', f'{small},limit=24,data.inputs.foreground=truth']

def test_commands(run, tmp_path, monkeypatch):
    "Train, kill and resume to the same bits, evaluate, segment, export"
    good(run(redo_train, 'digits', *own, '--out', 'whole'))
    cfg = json.loads((tmp_path/'whole/run.json').read_text())
    assert (cfg['model'], cfg['n_regions'], cfg['recipe']['data']['inputs']) == ('parts', 4, dict(foreground='truth'))
    old = Parts.losses
    def losses(self, x, phase, step, **kw):
        if step == 4: raise KeyboardInterrupt
        return old(self, x, phase, step, **kw)
    with monkeypatch.context() as m:
        m.setattr(Parts, 'losses', losses)
        assert run(redo_train, 'digits', *own, '--out', 'stopped')[0] == 130
    good(run(redo_train, '--resume', '--out', 'stopped', '--device', 'cpu', '--no-progress'))
    for o in ('losses.csv','weights/model.safetensors'): assert (tmp_path/'stopped'/o).read_bytes() == (tmp_path/'whole'/o).read_bytes(), o
    good(run(redo_evaluate, '--model', 'whole', '--device', 'cpu', '--no-progress'))
    Image.new('RGB', (40,30), 'red').save('a.png')
    good(run(redo_segment, 'a.png', '--model', 'whole', '--device', 'cpu', '--no-progress'))
    assert Image.open('segmented/a.mask.png').size == (40,30)
    for more,why in ((['--n-regions','3'], "n_regions=3: model 'parts' makes 4"), (['--set',f'{small},limit=24'], "needs 'foreground'"), (['--set',f'{small},inputs.foreground=crf'], "unknown teacher 'crf'")):
        rc,said = run(redo_train, 'digits', *own, *more, '--out', 'odd')
        assert rc == 1 and said.err.count('\n') == 1 and why in said.err, said.err

def test_segment_parts(run, tmp_path, monkeypatch):
    "The command divides what another model cut: labels, centres, and annotations for other tools, from Python the same"
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(1)
    Parts(32, net='unet', nf=4, levels=2, parts=3).save_pretrained('tiny/weights')
    g = np.random.default_rng(0)
    for i,(w,h) in enumerate(((120,70), (50,90))):
        a = np.full((h,w,3), (20,60,20))+g.integers(0, 9, (h,w,3))
        a[h//4:3*h//4,w//3:2*w//3] = np.kron(g.integers(120, 256, (3,2,3)), np.ones((h,w,1)))[::3,::2][h//4:3*h//4,w//3:2*w//3]
        Image.fromarray(a.astype(np.uint8)).save(f'{i}.png')
    Image.new('RGB', (40,40), 'grey').save('plain.png') # nothing to cut
    common = ['0.png', '1.png', 'plain.png', '--method', 'grabcut', '--refine', 'guided', '--device', 'cpu', '--no-progress', '--kinds', 'mask,cutout,coco']
    rc,said = run(redo_segment, *common, '--parts', 'tiny', '--out', 'parts')
    assert (rc, said.err) == (0, '') and 'label of each region: [0, 1, 2, 3], as the model knows' in said.out and 'parts of the object: 3, labels 1 to 3, by tiny' in said.out
    good(run(redo_segment, *common, '--out', 'whole'))
    told = json.loads(Path('parts/regions.json').read_text())
    assert told['labels'] == [0,1,2,3] and json.loads(Path('whole/regions.json').read_text())['labels'] == [0,1]
    coco,n = json.loads(Path('parts/coco.json').read_text()),0
    for i,o in enumerate(told['pictures']):
        labels,whole = (read_mask(f"{f}/{o['name']}.mask.png") for f in ('parts','whole'))
        assert ((labels > 0) == (whole > 0)).all() and Path(f"parts/{o['name']}.cutout.png").read_bytes() == Path(f"whole/{o['name']}.cutout.png").read_bytes()
        assert (labels == segment_image(method_model('grabcut'), f"{o['name']}.png").refined('guided').parts(load_decomposer('tiny', 'cpu')).labels).all()
        assert [r['label'] for r in o['regions']] == [0,1,2,3]
        for r in o['regions']:
            y,x = (labels == r['label']).nonzero()
            assert r['centre'] == ([round(float(v.mean()+.5), 1) for v in (x,y)] if len(x) else None)
        found = {a['category_id']: a for a in coco['annotations'] if a['image_id'] == i+1}
        assert {k: a['area'] for k,a in found.items()} == {int(k): int((labels == k).sum()) for k in np.unique(labels) if k}
        n += len(found)
    assert n >= 3 and [o['id'] for o in coco['categories']] == [1,2,3]
    assert [o['centre'] is None for o in told['pictures'][2]['regions']] == [False,True,True,True] # 'plain' has no object

def test_mistyped_parts():
    "A model of parts that is not there is told before PyTorch is imported"
    code = "import sys; from redo.cli import redo_segment\ntry: redo_segment.__wrapped__(example=True, parts='no/such/run')\nexcept Exception as e: print(e, 'torch' in sys.modules)"
    said = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True).stdout
    assert said.startswith('there is no model no/such/run') and said.endswith(' False\n'), said

def test_learner():
    "From Python, with a foreground that nobody drew; all losses are finite, and nothing of the features is kept with the model"
    dls = redo_dataloaders('digits', size=32, bs=4, device='cpu', needs=Parts.needs, inputs=dict(foreground='kmeans'), limit=24, progress=False)
    learn = redo_learner(dls, model='parts', recipe='parts_small', bs=4, nf=4, levels=2, parts=3, lr=5e-3)
    with learn.no_bar(), learn.no_logging(): learn.fit_steps(6, every=6)
    steps = learn.loss_history.steps
    assert len(steps) == 6 and set(steps[0]) == {'step','loss','features','colors','contrast','warps'} and all(math.isfinite(v) for o in steps for v in o.values())
    assert learn.model.n_regions == 4 and 'iou_set' in learn.loss_history.scores[-1]
    assert {k.split('.')[0] for k in learn.model.state_dict() if '.' in k} == {'network'}

def test_recipe():
    "The reference's settings, and its rule of the rate"
    r = get_recipe('parts', 'parts')
    assert (r.train.bs, r.train.steps, r.train.clip, r.train.optimizer) == (6, 100_000, 5., 'sgd-m0.9') and r.train.of('lr', ['body','head']) == [1e-5,1e-4]
    assert (r.model.net, r.model.features, r.model.parts) == ('deeplab', 'vgg19', 4) and r.train.of('wd', ['body','head']) == [5e-4]*2
    rule = parse_rule(r.train.rule)
    for step,want in ((0, 1e-5), (1, 9.999909999955e-06), (50_000, 5.3588673126814664e-06), (99_999, 3.1622776601554264e-10), (100_000, 0.)):
        assert abs(1e-5*rule.factor(step)-want) < 1e-17
    with pytest.raises(RedoError, match='poly'): get_recipe('parts', 'parts', rule='poly(0,1)')

def test_onnx(tmp_path):
    "Masks as an ONNX file; DeepLab's, which takes half a minute, with REDO_SLOW"
    for o in ('onnx','onnxscript','onnxruntime'): pytest.importorskip(o)
    torch.manual_seed(0)
    for i,kw in enumerate((dict(net='unet', nf=4, levels=2), *([dict(net='deeplab')] if os.environ.get('REDO_SLOW') else []))):
        model = Parts(32, parts=3, **kw).eval()
        export_onnx(model, tmp_path/f'{i}.onnx')
        x = torch.rand(3, 3, 32, 32)*2-1
        with torch.no_grad(): assert torch.allclose(OnnxMasks(tmp_path/f'{i}.onnx').decompose(x).masks, model.decompose(x).masks, atol=1e-4)
