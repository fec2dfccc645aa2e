"Adding a model is adding one class: those that are defined here go through every command, and nothing in the package knows of them"
import json
import numpy as np, pytest, torch, yaml
import redo.data.toy
from PIL import Image
from torch import nn
from redo.cli import redo_evaluate, redo_experiment, redo_export, redo_redraw, redo_segment, redo_train
from redo.core import MODELS, Decomposer, Decomposition, RedoError, register_model
from redo.data.loaders import _makers as INPUTS, redo_dataloaders, register_input
from redo.data.toy import digits_arrays
from redo.train.learner import redo_learner
from redo.use.segment import load_model

@pytest.fixture(autouse=True)
def slots():
    "A model of three slots of one color each, trained by reconstruction; its third slot may stay empty, and slots may change places"
    @register_model('slots')
    class Slots(Decomposer):
        permutes = True
        def __init__(self, size=32, n_regions=3, sharp:float=8., seed:int=0):
            super().__init__()
            self.config = dict(size=size, n_regions=n_regions, sharp=sharp, seed=seed)
            self.size,self.n_regions,self.sharp = size,n_regions,sharp
            self.colors = nn.Parameter(torch.randn(n_regions, 3, generator=torch.Generator().manual_seed(seed))/4)
        def decompose(self, x, n_regions=None):
            d = (x[:,None]-self.colors[None,:,:,None,None]).square().sum(2)
            masks = torch.softmax(-self.sharp*d, 1)
            return Decomposition(masks, recon=torch.einsum('bkhw,kc->bchw', masks, self.colors))
        def losses(self, x, phase, step):
            return {'loss': (self.decompose(x).recon-x).square().mean()}
    yield Slots
    del MODELS['slots']

@pytest.fixture
def bright():
    "A model of two regions that learns from foregrounds, and a maker of them"
    @register_model('threshold')
    class Threshold(Decomposer):
        needs = ('foreground',)
        def __init__(self, size=32, n_regions=2, sharp:float=4.):
            super().__init__()
            self.config = dict(size=size, n_regions=n_regions, sharp=sharp)
            self.size,self.n_regions,self.sharp = size,n_regions,sharp
            self.t = nn.Parameter(torch.tensor(.9))
        def decompose(self, x, n_regions=None):
            m = torch.sigmoid(self.sharp*(x.mean(1, keepdim=True)-self.t))
            return Decomposition(torch.cat([1-m, m], 1), background=0)
        def losses(self, x, phase, step, foreground):
            known = ~foreground.isnan()
            return {'loss': ((self.decompose(x).masks[:,1]-foreground.nan_to_num())[known]**2).mean()}
    own = INPUTS.get('foreground') # the package's
    @register_input('foreground')
    def make(pics, text, source):
        if text != 'bright': raise RedoError(f"foreground '{text}': use bright")
        m = (pics.images.float().mean(1) > 127).float()
        m[:,:2] = torch.nan
        return m
    yield Threshold
    del MODELS['threshold'], INPUTS['foreground']
    if own: INPUTS['foreground'] = own

short = '--steps 12 --bs 4 --device cpu --no-progress'.split()
small = ['--model', 'slots', '--size', '32', '--set', 'lr=0.02', *short]

def good(res):
    rc,said = res
    assert (rc, said.err) == (0, ''), said.err
    return said.out

def one_line(res, *words):
    rc,said = res
    assert rc == 1 and said.err.count('\n') == 1, said.err
    for o in words: assert o in said.err, (o, said.err)

def read(*path): return json.loads(path[0].joinpath(*path[1:]).read_text())

def folder(at, h=40, w=56, n=16):
    "Pictures of digits and their masks, wider than high"
    x,y = digits_arrays('valid', 64, progress=False)
    for o in ('images','masks'): (at/o).mkdir(parents=True)
    for i in range(n):
        Image.fromarray(x[i,:,:h,:w].permute(1,2,0).numpy()).save(at/'images'/f'{i}.png')
        Image.fromarray((y[i,:h,:w].numpy() > 0).astype(np.uint8)*255).save(at/'masks'/f'{i}.png')
    return at

def test_trains_like_any_model(slots, tmp_path):
    "From Python: losses fall, a free slot is no collapse, fit and fit_steps, save and load"
    dls = redo_dataloaders('digits', size=32, bs=4, device='cpu', needs=slots.needs, progress=False)
    learn = redo_learner(dls, model='slots', bs=4, lr=.02, sharp=6, n_regions=3)
    with learn.no_bar(), learn.no_logging(): learn.fit_steps(40, every=20)
    loss = [o['loss'] for o in learn.loss_history.steps]
    assert type(learn.model) is slots and len(loss) == 40 and sum(loss[-8:]) < .9*sum(loss[:8])
    assert not hasattr(learn, 'collapse_guard') and learn.model.sharp == 6 and learn.recipe.model.sharp == 6
    with learn.no_bar(), learn.no_logging(): learn.fit(1)
    learn.model.save_pretrained(tmp_path/'w')
    again = Decomposer.from_pretrained(tmp_path/'w')
    assert type(again) is slots and torch.equal(again.colors, learn.model.colors) and again.sharp == 6
    with pytest.raises(RedoError, match="no model 'sluts'"): redo_learner(dls, model='sluts')
    with pytest.raises(RedoError, match="unknown recipe 'robust' of model 'slots'"): redo_learner(dls, model='slots', recipe='robust')

def test_options(slots, run, tmp_path):
    "An option that stands in the constructor alone is one everywhere, by both of its names, with its type"
    for i,change in enumerate(('model.sharp=4','sharp=4')):
        good(run(redo_train, 'digits', *small, '--set', f'lr=0.02,{change}', '--out', f'r{i}'))
        assert read(tmp_path, f'r{i}/run.json')['recipe']['model'] == dict(sharp=4.)
        assert read(tmp_path, f'r{i}/weights/config.json')['config']['sharp'] == 4
    assert (tmp_path/'r0/losses.csv').read_bytes() == (tmp_path/'r1/losses.csv').read_bytes()
    for change,*why in (('model.sharp=x', "sharp='x': use a number"), ('sharp=nan', "sharp='nan': use a number"), ('model.blunt=1', "unknown option 'model.blunt': known are model.sharp, "),
                        ('w_z=1', "'w_z'", "model 'slots'"), ('lr.mask=1e-3', 'train.lr.mask: the groups are all'), ('inputs.pseudo=iem', 'needs nothing beside pictures')):
        one_line(run(redo_train, 'digits', *small, '--set', change, '--out', 'odd'), *why)
    assert not (tmp_path/'odd').exists() or not list((tmp_path/'odd').iterdir())
    one_line(run(redo_train, '--resume', '--out', 'r0', '--set', 'sharp=5'), 'model.sharp is 4.0, not 5')

def test_every_command(slots, run, tmp_path, monkeypatch):
    "Train, kill and resume, evaluate, segment, a grid, a line again: the model is in every file by its name"
    good(run(redo_train, 'digits', *small, '--out', 'whole'))
    cfg,s = [read(tmp_path, 'whole', o) for o in ('run.json','summary.json')]
    assert (cfg['model'], s['model'], s['status'], s['collapsed'], s['failed'], s['n_regions']) == ('slots','slots','finished',False,[],2)
    assert read(tmp_path, 'whole/weights/config.json')['model'] == 'slots'
    w,h = Image.open(tmp_path/'whole/previews/preview_000012.png').size
    assert w//2//34 == 5 # picture, truth, labels, reconstruction, and the second mask
    # stopped in the middle, taken up again: the same bits; the checkpoint alone is a model, too
    old = slots.losses
    def losses(self, x, phase, step):
        if step == 7: raise KeyboardInterrupt
        return old(self, x, phase, step)
    with monkeypatch.context() as m:
        m.setattr(slots, 'losses', losses)
        assert run(redo_train, 'digits', *small, '--out', 'stopped')[0] == 130
    assert type(load_model(tmp_path/'stopped/checkpoint.pth', 'cpu')) is slots
    good(run(redo_train, '--resume', '--out', 'stopped', '--device', 'cpu', '--no-progress'))
    for o in ('losses.csv','weights/model.safetensors'): assert (tmp_path/'stopped'/o).read_bytes() == (tmp_path/'whole'/o).read_bytes(), o
    one_line(run(redo_train, '--resume', '--out', 'stopped', '--model', 'redo'), 'its model is slots, not redo')
    # used
    good(run(redo_evaluate, '--model', 'whole', '--json', 'scores.json', '--device', 'cpu', '--no-progress'))
    assert abs(read(tmp_path, 'scores.json')['iou_set']-s['iou_set']) < 1e-6
    Image.fromarray(redo_dataloaders('digits', size=32, device='cpu', progress=False).valid.dataset.images[0].permute(1,2,0).numpy()).resize((80,60)).save('a.png')
    good(run(redo_segment, 'a.png', '--model', 'whole', '--device', 'cpu', '--no-progress'))
    assert Image.open('segmented/a.mask.png').size == (80,60)
    one_line(run(redo_redraw, 'a.png', '--model', 'whole', '--no-progress'), 'slots')
    one_line(run(redo_train, 'digits', '--model', 'no such', '--steps', 2), "no model 'no such'")

def test_grid(slots, run, tmp_path):
    "Two lines of a grid, one of them again by its id, and an option of the model in each of its names"
    grid = dict(seeds=1, base=dict(model='slots', steps=3, bs=4, size=32, n_regions=3, device='cpu'), data=dict(digits={}), settings=dict(soft={'model.sharp': 2}, hard={'sharp': '2e1'}))
    (tmp_path/'g.yml').write_text(yaml.safe_dump(grid))
    good(run(redo_experiment, 'g.yml', '--no-progress'))
    lines = [json.loads(o) for o in (tmp_path/'results/g.jsonl').read_text().splitlines()]
    assert [o['model'] for o in lines] == ['slots']*2 and lines[0]['id'] != lines[1]['id'] and [o['changes']['model.sharp'] for o in lines] == [20,2] # sorted by YAML
    assert 'are the same to the last bit' in good(run(redo_experiment, '--again', lines[1]['id'], '--no-progress'))
    for o,why in ((dict(sharp='x'), "'hard': sharp='x': use a number"), (dict(recipe='paper'), "unknown recipe 'paper' of model 'slots'"), (dict(w_area=1), "'hard': unknown option 'w_area' of model 'slots'")):
        (tmp_path/'bad.yml').write_text(yaml.safe_dump(grid | dict(settings=dict(hard=o))))
        one_line(run(redo_experiment, 'bad.yml', '--no-progress'), why)

def test_pictures_that_are_not_square(slots, run, tmp_path):
    "The size of the spec, (h,w), from the loaders to the weights; the size of a command has one side"
    folder(tmp_path/'pics')
    good(run(redo_train, 'pics-(32,48)', '--model', 'slots', *short, '--set', 'lr=0.02,crop=1.25,flip=yes', '--n-regions', 3, '--out', 'wide'))
    s = read(tmp_path, 'wide/summary.json')
    assert (s['size'], s['n_regions'], s['n_images'] > 0) == ([32,48], 3, True)
    assert Image.open(tmp_path/'wide/masks.png').size[1] % (2*34) == 0
    assert read(tmp_path, 'wide/weights/config.json')['config']['size'] == [32,48]
    good(run(redo_train, '--resume', '--out', 'wide', '--device', 'cpu', '--no-progress'))
    good(run(redo_evaluate, '--model', 'wide', '--device', 'cpu', '--no-progress'))
    good(run(redo_segment, 'pics/images/0.png', '--model', 'wide', '--device', 'cpu', '--no-progress'))
    assert Image.open(tmp_path/'segmented/0.mask.png').size == (56,40)
    one_line(run(redo_train, 'pics-(32,48)', '--steps', 2, '--out', 'redo', '--no-progress', '--device', 'cpu'), '32')

def test_needs(bright, run, tmp_path):
    "What a model needs beside pictures is made by name, moved with the pictures, kept in the recipe, and asked for in one line"
    own = ['--model', 'threshold', '--size', '32', *short]
    good(run(redo_train, 'digits', *own, '--set', 'data.inputs.foreground=bright,lr=.05,zoom=.8,flip=1', '--out', 'whole', '--results', 'a.jsonl'))
    cfg,s = [read(tmp_path, 'whole', o) for o in ('run.json','summary.json')]
    assert cfg['recipe']['data']['inputs'] == dict(foreground='bright') and s['losses']['loss'] < .3
    assert s['failed'] == [] and 'assignment' in s
    assert 'are the same to the last bit' in good(run(redo_experiment, '--again', s['id'], '--results', 'a.jsonl', '--no-progress'))
    good(run(redo_evaluate, '--model', 'whole', '--device', 'cpu', '--no-progress'))
    one_line(run(redo_train, 'digits', *own, '--out', 'odd'), "needs 'foreground'", 'data.inputs.foreground=')
    one_line(run(redo_train, 'digits', *own, '--out', 'odd', '--set', 'inputs.foreground=dark'), "foreground 'dark': use bright")
    one_line(run(redo_train, 'digits', *own, '--out', 'odd', '--set', 'inputs.foreground=bright,inputs.points=x'), 'inputs.points')
    dls = redo_dataloaders('digits', size=32, bs=4, device='cpu', needs=bright.needs, inputs=dict(foreground='bright'), progress=False)
    x,more = dls.train.one_batch()
    assert set(more) == {'foreground'} and more['foreground'].shape == (4,32,32) and more['foreground'][:,:2].isnan().all()
    learn = redo_learner(dls, model='threshold', lr=.05)
    with learn.no_bar(), learn.no_logging(): learn.fit_steps(4)
    assert learn.model.step == 4
    plain = redo_dataloaders('digits', size=32, bs=4, device='cpu', needs=(), progress=False)
    with pytest.raises(RedoError, match="needs 'foreground' in every batch"): redo_learner(plain, model='threshold')

def test_sees(bright, run, tmp_path):
    "What a model says that it sees reaches it wherever it does not train, from a maker that asks for no split; it does without where nobody says so"
    told = []
    @register_model('told')
    class Told(bright):
        sees = ('foreground',)
        def decompose(self, x, n_regions=None, foreground=None):
            if not self.training: told.append(foreground)
            m = super().decompose(x).masks[:,1:]
            if foreground is not None: m = m*foreground.nan_to_num(0)[:,None]
            return Decomposition(torch.cat([1-m, m], 1), background=0)
    try:
        good(run(redo_train, 'digits', '--model', 'told', '--size', '32', *short, '--set', 'inputs.foreground=bright,lr=.05,zoom=.8,crop=1.2,limit=40', '--out', 'whole'))
        assert told and all(o is not None and o.shape[1:] == (32,32) and o[:,:2].isnan().all() for o in told)
        n = len(told)
        good(run(redo_evaluate, '--model', 'whole', '--device', 'cpu', '--no-progress'))
        assert len(told) > n and all(o is not None for o in told)
        dls = redo_dataloaders('digits', size=32, bs=4, device='cpu', needs=Told.needs, inputs=dict(foreground='bright'), limit=12, progress=False)
        assert [len(o.one_batch()) for o in dls] == [2,2,2]
        Image.new('RGB', (32,32), 'white').save('a.png')
        told.clear()
        good(run(redo_segment, 'a.png', '--model', 'whole', '--device', 'cpu', '--no-progress'))
        assert told and all(o is None for o in told)
    finally: del MODELS['told']

def test_export(slots, run, tmp_path):
    "Its masks as an ONNX file, at a size that is not square, too; one line where PyTorch cannot trace it"
    for o in ('onnx','onnxscript','onnxruntime'): pytest.importorskip(o)
    from redo.use.onnx import OnnxMasks
    for size,said_size in ((32,'32'), ((24,40),'24x40')):
        net = slots(size, seed=1).eval()
        net.save_pretrained(tmp_path/'w')
        rc,said = run(redo_export, '--model', 'w', '--out', 'slots.onnx')
        assert rc == 0 and f'slots.onnx: {said_size} px, 3 regions, background unknown; masks within' in said.out, said.err
        x = torch.rand(3, 3, *((size,size) if isinstance(size, int) else size))*2-1
        assert torch.allclose(OnnxMasks(tmp_path/'slots.onnx')(x), net(x), atol=1e-5)
    @register_model('fussy')
    class Fussy(slots):
        def decompose(self, x, n_regions=None): return super().decompose(x if x.mean() > 0 else -x)
    try:
        Fussy(32).save_pretrained(tmp_path/'f')
        rc,said = run(redo_export, '--model', 'f', '--out', 'fussy.onnx')
    finally: del MODELS['fussy']
    assert rc == 1 and said.err.startswith("redo-export: model 'fussy' cannot become an ONNX file: PyTorch cannot trace") and said.err.count('\n') == 1
    assert not (tmp_path/'fussy.onnx').exists()
