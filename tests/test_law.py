"Adding a model is adding one class: one that is defined here goes through every command, and nothing in the package knows of it"
import json, shutil
import pytest, torch, yaml
import redo.data.toy
from torch import nn
from redo.cli import redo_evaluate, redo_experiment, redo_export, redo_redraw, redo_segment, redo_train, run_command
from redo.core import MODELS, Decomposer, Decomposition, RedoError, register_model
from redo.data.loaders import redo_dataloaders
from redo.train.learner import redo_learner
from redo.use.segment import load_model

@pytest.fixture(autouse=True)
def slots():
    "A model of three slots of one color each, trained by reconstruction; its third slot may stay empty"
    @register_model('slots')
    class Slots(Decomposer):
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

small = '--model slots --size 32 --steps 12 --bs 4 --set lr=0.02 --device cpu --no-progress'.split()

@pytest.fixture
def run(capfd, tmp_path, monkeypatch):
    "`run(command, *argv)` in a folder of its own: exit status, and what it said"
    monkeypatch.chdir(tmp_path)
    def _run(command, *argv):
        rc = run_command(command.__wrapped__, [str(o) for o in argv])
        return rc, capfd.readouterr()
    return _run

def test_trains_like_any_model(slots, tmp_path):
    "From Python: losses fall, a free slot is no collapse, fit and fit_steps, save and load"
    dls = redo_dataloaders('digits', size=32, bs=4, device='cpu', reals='reals' in slots.needs, progress=False)
    learn = redo_learner(dls, recipe='robust', model='slots', bs=4, lr=.02, n_regions=3)
    with learn.no_bar(), learn.no_logging(): learn.fit_steps(40, every=20)
    loss = [o['loss'] for o in learn.loss_history.steps]
    assert type(learn.model) is slots and len(loss) == 40 and sum(loss[-8:]) < .9*sum(loss[:8])
    assert not hasattr(learn, 'collapse_guard')
    learn.model.save_pretrained(tmp_path/'w')
    again = Decomposer.from_pretrained(tmp_path/'w')
    assert type(again) is slots and torch.equal(again.colors, learn.model.colors)
    with pytest.raises(RedoError, match="no model 'sluts'"): redo_learner(dls, model='sluts')

def test_every_command(slots, run, tmp_path, monkeypatch):
    "Train, kill and resume, evaluate, segment, a grid: the model is in every file by its name"
    from PIL import Image
    rc,said = run(redo_train, 'digits', *small, '--out', 'whole')
    assert rc == 0, said.err
    cfg,s = [json.loads((tmp_path/'whole'/o).read_text()) for o in ('run.json','summary.json')]
    assert (cfg['model'], s['model'], s['status'], s['collapsed']) == ('slots','slots','finished',False)
    assert json.loads((tmp_path/'whole/weights/config.json').read_text())['model'] == 'slots'
    # stopped in the middle, taken up again: the same bits; the checkpoint alone is a model, too
    old = slots.losses
    def losses(self, x, phase, step):
        if step == 7: raise KeyboardInterrupt
        return old(self, x, phase, step)
    with monkeypatch.context() as m:
        m.setattr(slots, 'losses', losses)
        assert run(redo_train, 'digits', *small, '--out', 'stopped')[0] == 130
    assert type(load_model(tmp_path/'stopped/checkpoint.pth', 'cpu')) is slots
    assert run(redo_train, '--resume', '--out', 'stopped', '--device', 'cpu', '--no-progress')[0] == 0
    for o in ('losses.csv','weights/model.safetensors'): assert (tmp_path/'stopped'/o).read_bytes() == (tmp_path/'whole'/o).read_bytes(), o
    rc,said = run(redo_train, '--resume', '--out', 'stopped', '--model', 'redo')
    assert rc == 1 and 'its model is slots, not redo' in said.err
    # used
    rc,said = run(redo_evaluate, '--model', 'whole', '--json', 'scores.json', '--device', 'cpu', '--no-progress')
    assert rc == 0 and abs(json.loads((tmp_path/'scores.json').read_text())['iou_set']-s['iou_set']) < 1e-6
    Image.fromarray(redo_dataloaders('digits', size=32, device='cpu', progress=False).valid.dataset.images[0].permute(1,2,0).numpy()).resize((80,60)).save('a.png')
    assert run(redo_segment, 'a.png', '--model', 'whole', '--device', 'cpu', '--no-progress')[0] == 0
    assert Image.open('segmented/a.mask.png').size == (80,60)
    rc,said = run(redo_redraw, 'a.png', '--model', 'whole', '--no-progress')
    assert rc == 1 and said.err.count('\n') == 1 and 'slots' in said.err
    # and in a grid
    (tmp_path/'g.yml').write_text(yaml.safe_dump(dict(seeds=1, base=dict(model='slots', recipe='robust', steps=3, bs=4, size=32, device='cpu'), data=dict(digits={}), settings=dict(slow=dict(lr=1e-3), fast=dict(lr=1e-2)))))
    rc,said = run(redo_experiment, 'g.yml', '--no-progress')
    assert rc == 0, said.err
    lines = [json.loads(o) for o in (tmp_path/'results/g.jsonl').read_text().splitlines()]
    assert [o['model'] for o in lines] == ['slots']*2 and lines[0]['id'] != lines[1]['id']
    assert run(redo_experiment, '--again', lines[0]['id'], '--no-progress')[0] == 0
    rc,said = run(redo_train, 'digits', '--model', 'no such', '--steps', 2)
    assert rc == 1 and said.err.count('\n') == 1 and "no model 'no such'" in said.err

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
