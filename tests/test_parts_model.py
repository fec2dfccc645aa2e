"Parts go through trainer, resume, evaluator and export like any other model, with foregrounds from wherever"
import json, math, os, subprocess, sys
from pathlib import Path
import numpy as np, pandas as pd, pytest, torch
from PIL import Image
from redo.cli import redo_evaluate, redo_segment, redo_train
from redo.core import RedoError
from redo.data.images import read_mask
from redo.data.loaders import redo_dataloaders
from redo.data.toy import make_digits
from redo.draw import color_labels, preview_grid
from redo.metrics import evaluate
from redo.metrics_parts import PartScores
from redo.models.parts import Parts
from redo.models.redo import ReDO
from redo.nets.deeplab import DeepLab
from redo.train.learner import redo_learner
from redo.train.recipes import get_recipe
from redo.schedules import parse_rule
from redo.use.cut import load_decomposer, segment_image
from redo.use.methods import method_model
from redo.use.onnx import OnnxMasks, export_onnx
from redo.use.segment import load_model
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

@pytest.fixture
def folder(tmp_path):
    "A set of parts: digits, whose upper half is another part than the lower one; and their figures as masks in a folder"
    x,t = make_digits(24, 32, seed=1)
    for o in ('set/images','set/labels','masks'): (tmp_path/o).mkdir(parents=True)
    for i,(a,b) in enumerate(zip(x, (t > 0).byte())):
        Image.fromarray(a.permute(1,2,0).numpy()).save(tmp_path/f'set/images/{i}.png')
        Image.fromarray(255*b.numpy()).save(tmp_path/f'masks/{i}.png')
        b[16:] *= 2
        Image.fromarray(b.numpy()).save(tmp_path/f'set/labels/{i}.png')
    names = [str(i) for i in range(24)]
    (tmp_path/'set/splits.json').write_text(json.dumps(dict(train=names[:14], valid=names[14:20], test=names[20:])))
    return tmp_path

def tiny(foreground, *more, spec='parts-folder:set'):
    return [spec, '--model', 'parts', '--recipe', 'parts_small', '--size', '32', '--steps', '4', '--bs', '4', '--device', 'cpu', '--no-progress',
        '--set', ','.join([small, f'data.inputs.foreground={foreground}', *more])]

def last(*at): return json.loads(at[0].joinpath(*at[1:]).read_text())
both = ('fg_nmi','fg_ari','nmi','ari')

def test_foregrounds_where_it_does_not_train(run, folder):
    "Scores of validation and test are those of the foregrounds by hand, in the run, its history, a learner and `redo-evaluate`; previews keep the ground"
    for o,text in (('whole','truth'), ('given','folder:masks')): good(run(redo_train, *tiny(text), '--out', o))
    s,other = (last(folder, o, 'summary.json') for o in ('whole','given'))
    assert all(s[k] == other[k] and s['test'][k] == other['test'][k] for k in both) # one foreground from two places
    dls = redo_dataloaders('parts-folder:set', 32, 4, device='cpu', needs=Parts.needs, sees=Parts.sees, inputs=dict(foreground='truth'), progress=False)
    model = load_model('whole', 'cpu')
    for dl,want in ((dls.valid, s), (dls.test, s['test'])):
        hand,own,blind = PartScores(4),PartScores(4),PartScores(4)
        for x,y,known in dl:
            assert torch.equal(known['foreground'], (y > 0).float())
            with torch.no_grad(): cut,bare = model.decompose(x, known['foreground']),model.decompose(x)
            hand.add(bare, y, dict(foreground=known['foreground'])); own.add(cut, y); blind.add(bare, y)
        res = hand.compute()
        assert own.compute() == res == evaluate(model, dl) and all(abs(res[k]-want[k]) < 1e-12 for k in both), (res, want)
        assert blind.compute()['nmi'] < res['nmi'] and blind.compute()['fg_nmi'] == res['fg_nmi']
    assert all(abs(pd.read_csv('whole/history.csv')[k].iloc[-1]-s[k]) < 1e-9 for k in both)
    learn = redo_learner(dls, model='parts', recipe='parts_small', nf=4, levels=2, parts=3)
    learn.model.load_state_dict(model.state_dict())
    with learn.no_bar(), learn.no_logging(): (masks,truth),vals = learn.get_preds(),learn.validate()
    assert torch.equal(masks.argmax(1) > 0, truth > 0) and all(abs(a-s[k]) < 1e-9 for a,k in zip(vals[1:], both))
    assert torch.equal(learn.tta()[0].argmax(1) > 0, truth > 0)
    x,y,known = dls.valid.one_batch()
    seen,bare = (np.asarray(preview_grid(model, x, y, scale=1, known=o)) for o in (known,None))
    ground = tuple(color_labels(torch.zeros(1,1,1).long()).flatten().tolist())
    third = lambda o: o[:34,68:102][1:33,1:33] # labels of the first picture
    assert (third(seen) == ground).all(-1).mean() > .5 > (third(bare) == ground).all(-1).mean() == 0
    # what is scored again is scored with the foregrounds of the run, unless others are said
    for name,more in (('a',[]), ('b',['--set','inputs.foreground=folder:masks']), ('c',['--data','parts-folder:set'])):
        good(run(redo_evaluate, '--model', 'whole', *more, '--split', 'test', '--json', f'{name}.json', '--device', 'cpu', '--no-progress'))
        assert all(abs(last(folder, f'{name}.json')[k]-s['test'][k]) < 1e-12 for k in both)
    cfg = last(folder, 'whole/weights/config.json') # weights of an earlier version do not say
    assert cfg['notes'].pop('inputs') == dict(foreground='truth')
    (folder/'whole/weights/config.json').write_text(json.dumps(cfg))
    rc,said = run(redo_evaluate, '--model', 'whole', '--split', 'test', '--json', 'd.json', '--device', 'cpu', '--no-progress')
    assert rc == 0 and 'foreground truth' in said.out and last(folder, 'd.json')['nmi'] == last(folder, 'a.json')['nmi']
    os.rename('set', 'elsewhere') # another set: nothing is seen of it, unless that is said
    for more,seen in (([], False), (['--set','inputs.foreground=truth'], True)):
        good(run(redo_evaluate, '--model', 'whole', '--data', 'parts-folder:elsewhere', *more, '--json', 'e.json', '--device', 'cpu', '--no-progress'))
        assert ('inputs' in last(folder, 'e.json'), last(folder, 'e.json')['nmi'] == s['nmi']) == (seen, seen)

def test_what_is_not_known(run, folder):
    "An empty foreground in training leaves its picture out, elsewhere it is the ground; so is a foreground that a teacher cannot give"
    black = Image.new('L', (32,32))
    for i in (3,15): black.save(f'masks/{i}.png')
    good(run(redo_train, *tiny('folder:masks'), '--out', 'one'))
    s = last(folder, 'one/summary.json')
    assert (s['n_pictures'], s['n_images'], s['test']['n_images']) == (13, 6, 4)
    for i in range(14, 24): black.save(f'masks/{i}.png')
    good(run(redo_train, *tiny('folder:masks'), '--out', 'none')) # no picture of validation has one: all is ground
    s = last(folder, 'none/summary.json')
    assert (s['nmi'], s['ari']) == (0., 0.) and s['fg_nmi'] > 0
    dls = redo_dataloaders('parts-folder:set', 32, 4, device='cpu', needs=Parts.needs, sees=Parts.sees, inputs=dict(foreground='kmeans'), limit=5, progress=False)
    assert [len(o.dataset) for o in dls][1:] == [5,4] and all(len(o.dataset.inputs['foreground']) == len(o.dataset) for o in dls)

def one_line(res, why):
    rc,said = res
    assert rc == 1 and said.err.count('\n') == 1 and why in said.err and 'Traceback' not in said.err, said.err

def test_bad_foregrounds(run, folder):
    "Each in one line that names the file or the value, and nothing is left behind"
    def refuse(why, foreground='folder:masks', **kw):
        one_line(run(redo_train, *tiny(foreground, **kw), '--out', 'odd'), why)
        assert not (folder/'odd').exists() or not list((folder/'odd').iterdir())
    os.rename('masks/15.png', '15.png')
    refuse("masks has no mask of '15'")
    Image.new('L', (30,20)).save('masks/15.png')
    refuse('15.png is 30x20 pixels but its picture set/images/15.png is 32x32: make them equal')
    (folder/'masks/15.png').write_bytes(b'')
    refuse('15.png')
    os.rename('set/labels', 'set/masks') # as a set of figures
    refuse('15.png: it is empty', spec='set')
    Image.new('L', (30,20)).save('masks/15.png')
    refuse('15.png is 30x20 pixels but its picture set/images/15.png is 32x32: make them equal', spec='set')
    os.rename('set/masks', 'set/labels'); os.rename('15.png', 'masks/15.png')
    for i in range(14): Image.new('L', (32,32)).save(f'masks/{i}.png')
    refuse('it is empty in all 14 pictures')
    refuse("there is no folder no/where of foregrounds", 'folder:no/where')
    refuse("no foreground 'x'", 'given:x')
    refuse("unknown teacher 'crf'", 'crf')
    refuse('there is no model', 'model:no/where/at/all')
    Image.new('L', (32,32)).save('set/labels/16.png')
    refuse('16.png has an empty foreground', 'truth')
    Image.new('L', (30,20), 1).save('set/labels/16.png')
    refuse('16.png is 30x20 pixels but its picture', 'truth')
    (folder/'set/labels/16.png').unlink()
    good(run(redo_train, *tiny('kmeans'), '--out', 'whole')) # nothing is known of the parts of one picture

def test_bad_models(run, folder):
    "Numbers of parts, features and beginnings that cannot be, or that are another run's"
    good(run(redo_train, *tiny('truth'), '--out', 'whole'))
    for i,(change,why) in enumerate(((['parts=1'], "parts='1': use a whole number from 2 to 253"), (['parts=254'], "parts='254': use"), (['net=deeplab','parts=30'], 'parts=30: pictures of 32x32 have 25 places'),
                       (['features=vgg'], "features='vgg'"), (['features=mask:./no/where'], 'no/where'), (['features=vgg19:no.pth'], 'no.pth'),
                       (['features=mask:whole'], "holds no trained 'mask' network"), (['features=vgg19:whole/checkpoint.pth'], 'whole/checkpoint.pth'),
                       (['backbone=a.pth'], 'a U-Net has none'), (['net=deeplab','backbone=a.pth'], 'a.pth does not exist'), (['net=deeplab','backbone=whole/checkpoint.pth'], 'whole/checkpoint.pth'))):
        own = [o for o in small.split(',') if o.partition('=')[0] not in [c.partition('=')[0] for c in change]]
        if 'net=deeplab' in change: own = [o for o in own if not o.startswith(('nf','levels'))]
        argv = tiny('truth')[:-1]+[','.join([*own, 'data.inputs.foreground=truth', *change])]
        one_line(run(redo_train, *argv, '--out', f'odd{i}'), why)
    torch.save(dict(model_state_dict={f'module.{k}': v for k,v in DeepLab(2).state_dict().items()}), 'two.pth')
    one_line(run(redo_train, *tiny('truth')[:-1], 'net=deeplab,parts=3,features=random,backbone=two.pth,data.inputs.foreground=truth', '--out', 'odd'), 'trained for 2 parts')
    for change,why in ((dict(parts=4), 'model.parts is 3, not 4'), (dict(features='mask:x'), "model.features is random, not mask:x"), (dict(net='deeplab'), 'model.net is unet, not deeplab')):
        one_line(run(redo_train, '--resume', '--out', 'whole', '--set', ','.join(f'{k}={v}' for k,v in change.items())), why)
    one_line(run(redo_train, '--resume', '--out', 'whole', '--set', 'data.inputs.foreground=kmeans'), 'data.inputs')
    one_line(run(redo_evaluate, '--model', 'whole', '--set', 'parts=4'), '--set parts')
    one_line(run(redo_evaluate, '--model', 'whole', '--set', 'inputs.pseudo=iem'), 'this model sees foreground beside pictures')
    one_line(run(redo_evaluate, '--model', 'whole', '--set', 'inputs.foreground=folder:no'), 'there is no folder no of foregrounds')
    ReDO(size=32, nf=4).save_pretrained('redo')
    one_line(run(redo_evaluate, '--model', 'redo', '--data', 'digits', '--set', 'inputs.foreground=truth'), 'this model sees nothing beside pictures')
    # a checkpoint of another K in the place of its own
    (folder/'whole/summary.json').unlink()
    cfg = last(folder, 'whole/run.json')
    cfg['recipe']['model']['parts'],cfg['n_regions'] = 4,5
    (folder/'whole/run.json').write_text(json.dumps(cfg))
    one_line(run(redo_train, '--resume', '--out', 'whole', '--device', 'cpu', '--no-progress'), 'checkpoint.pth')
