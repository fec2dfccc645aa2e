"DTI-Sprites in the trainer: stopped and resumed while sprites are renewed, and as an ONNX file"
import pytest, torch
from redo.data.shapes import ShapesSource
from redo.models.dti_sprites import DTISprites
from redo.study.run import train_run
from redo.weights import safe_load

tiny = dict(spec='shapes', recipe='dti_sprites_small', size=16, n_regions=4, steps=8, nf=4, hidden=8, sprite=8, n_sprites=3, bs=4,
    renew_every=3, renew_below=1., projective_from=2, mean_steps=3)
same = dict(progress=False, device='cpu')

def equal(a, b):
    "The same values and bits, however deep"
    if isinstance(a, dict): return a.keys() == b.keys() and all(equal(a[k], b[k]) for k in a)
    if isinstance(a, (list,tuple)): return len(a) == len(b) and all(map(equal, a, b))
    return torch.equal(a, b) if torch.is_tensor(a) else a == b

@pytest.mark.parametrize('encoder', ['small','resnet18'])
def test_stopped_and_resumed(encoder, tmp_path, monkeypatch):
    "The same weights, counts and moments as without the stop, with sprites renewed on both sides of it"
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(ShapesSource, 'n', 60)
    losses,renew,copied = DTISprites.losses,DTISprites.renew,[]
    def count(self):
        copied.append((self.step, len(done := renew(self))))
        return done
    monkeypatch.setattr(DTISprites, 'renew', count)
    opts = tiny | dict(encoder=encoder, pool=1 if encoder == 'resnet18' else 4)
    whole = train_run(out='whole', **opts, **same)
    assert [o for o,_ in copied] == [3,6] and all(n == 7 for _,n in copied) # sprites, and weights of their maps
    def stop(self, x, phase, step):
        if step == 5: raise KeyboardInterrupt
        return losses(self, x, phase, step)
    with monkeypatch.context() as m:
        m.setattr(DTISprites, 'losses', stop)
        with pytest.raises(KeyboardInterrupt): train_run(out='stopped', **opts, **same)
    again = train_run(None, out='stopped', resume=True, **same)
    a,b = (safe_load(f'{o}/checkpoint.pth') for o in ('whole','stopped'))
    assert equal(a['model'], b['model']) and equal(a['opt'], b['opt'])
    assert again['ari'] == whole['ari'] and again['mse'] == whole['mse'] > 0

def test_moments_go_with_sprites(tmp_path, monkeypatch):
    "The trainer does to moments of the optimizer what the model did to rows of a parameter"
    from redo.data.loaders import redo_dataloaders
    from redo.train.learner import redo_learner
    monkeypatch.setattr(ShapesSource, 'n', 60)
    opts = {k: v for k,v in tiny.items() if k not in ('spec','steps','size','n_regions','bs')} | dict(renew_every=6, renew_below=.99)
    learn = redo_learner(redo_dataloaders('shapes', size=16, bs=4, device='cpu', progress=False), 4, **opts)
    net = learn.model
    def use(self): # the first sprite is all that counts
        self.used.copy_(torch.tensor([1.,0,0]))
        return renew(self)
    renew = DTISprites.renew
    with monkeypatch.context() as m:
        m.setattr(DTISprites, 'renew', use)
        with learn.no_bar(), learn.no_logging(): learn.fit_steps(6)
    state = learn.opt.opt.state
    for k in ('exp_avg','exp_avg_sq'):
        v = state[net.sprites][k]
        assert torch.equal(v[1], v[0]) and torch.equal(v[2], v[0]) and v.any()
        v = state[net.heads['projective'].weights[2]][k].unflatten(0, (3,3)) # layer, sprite
        assert torch.equal(v[:,1], v[:,0]) and torch.equal(v[:,2], v[:,0]) and v.any()

def test_export(tmp_path):
    "Masks of an ONNX file are those of the model"
    for o in ('onnx','onnxscript','onnxruntime'): pytest.importorskip(o)
    from redo.use.onnx import OnnxMasks, export_onnx
    net = DTISprites(4, 16, encoder='small', nf=4, hidden=8, sprite=8, n_sprites=3, projective_from=0).eval()
    export_onnx(net, tmp_path/'m.onnx')
    x = torch.rand(3, 3, 16, 16)*2-1
    assert torch.allclose(OnnxMasks(tmp_path/'m.onnx')(x), net(x), atol=1e-4)
