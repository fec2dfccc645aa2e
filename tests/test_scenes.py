"A scene model goes through training, a stop, resume and scores as any model does"
import pytest, torch
from redo.data.shapes import ShapesSource
from redo.core import model_class
from redo.study.run import train_run
from redo.use.onnx import export_onnx
from redo.use.segment import load_model
from redo.weights import safe_load

tiny = dict(spec='shapes', size=16, n_regions=4, steps=6, nf=8, hidden=8, bs=4)
own = dict(slot_attention=dict(ups=1), monet=dict(levels=3, nf_vae=4), genesis2=dict(levels=3, ups=1, nf_prior=4))
same = dict(progress=False, device='cpu')

@pytest.mark.parametrize('model', own)
def test_stopped_and_resumed(model, tmp_path, monkeypatch):
    "The same bits as without the stop; pictures, scores of scenes and what is known of materials are there; masks leave Python"
    monkeypatch.chdir(tmp_path)
    cls,opts = model_class(model),dict(tiny, recipe=f'{model}_small', **own[model])
    monkeypatch.setattr(ShapesSource, 'n', 60)
    whole = train_run(out='whole', **opts, **same)
    losses = cls.losses
    def stop(self, x, phase, step):
        if step == 4: raise KeyboardInterrupt
        return losses(self, x, phase, step)
    with monkeypatch.context() as m:
        m.setattr(cls, 'losses', stop)
        with pytest.raises(KeyboardInterrupt): train_run(out='stopped', **opts, **same)
    again = train_run(None, out='stopped', resume=True, **same)
    a,b = (safe_load(f'{o}/checkpoint.pth')['model'] for o in ('whole','stopped'))
    assert a.keys() == b.keys() and all(torch.equal(a[k], b[k]) if torch.is_tensor(a[k]) else a[k] == b[k] for k in a)
    assert again['miou_fg'] == whole['miou_fg'] and again['mse'] == whole['mse'] > 0 and {'ari','ari_fg','ari_fgbg','sc'} < set(whole)
    assert set(whole['of']) == {'ground_material','material','shape','size','color'}
    assert all((tmp_path/'whole'/o).exists() for o in ('masks.png','curve.png','report.html','weights/model.safetensors'))
    assert list((tmp_path/'whole'/'previews').glob('*.png'))
    assert export_onnx(load_model(tmp_path/'whole'), tmp_path/'model.onnx') < 1e-4
