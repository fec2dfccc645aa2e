"A data set names the scores it is judged by: a family of scores that is defined here goes through training, evaluation and its table; nothing in the package knows of it"
import json
import pytest, torch
from torch import nn
from redo.cli import redo_evaluate, redo_train, run_command
from redo.core import MODELS, Decomposer, Decomposition, RedoError, register_model
from redo.data.spec import Pictures, SOURCES, Source, as_size, register_source
from redo.data.toy import digits_arrays
from redo.metrics import SCORES, Scores, evaluate, register_scores
from redo.data.loaders import MemoryDL, MemorySet, redo_dataloaders
from redo.study.run import run_scores, score_split
import redo.metrics_mixtures, redo.data.photos

class Bright(Decomposer):
    "Region 1 is what is brighter than a learned threshold"
    def __init__(self, size=32, n_regions=2):
        super().__init__()
        self.config,self.size,self.n_regions = dict(size=size, n_regions=n_regions),size,n_regions
        self.t = nn.Parameter(torch.zeros(()))
    def decompose(self, x):
        m = torch.sigmoid(10*(x.mean(1, keepdim=True)-self.t))
        return Decomposition(torch.cat([1-m, m], 1))
    def losses(self, x, phase, step): return {'loss': (self.decompose(x).areas()-.5).pow(2).mean()}

@pytest.fixture
def family():
    "Scores 'count', a set 'counted' that names them, and a model"
    @register_scores('count')
    class Count(Scores):
        columns = ('share_known',)
        def reset(self): self.known,self.n = 0.,0
        def add(self, deco, truth=None, meta=None):
            self.known,self.n = self.known+(truth != 255).float().mean((1,2)).sum().item(),self.n+len(truth)
        def compute(self, assignment=None): return dict(share_known=self.known/self.n, n_images=self.n)
    class Counted(Source):
        name,scores,n_classes,size,splits = 'counted','count',2,32,('train','valid','test')
        def pictures(self, split, size, resize='antialias'): return Pictures(*digits_arrays(split, as_size(size)[0], progress=False))
    register_source('counted')(lambda *_: Counted())
    register_model('bright')(Bright)
    yield
    SCORES.pop('count'), SOURCES.pop('counted'), MODELS.pop('bright')

def test_named_by_the_data_set(family, tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    dls = redo_dataloaders('counted', bs=4, device='cpu', needs=(), progress=False)
    assert run_scores(Bright(), dls) == dict(share_known=1., n_images=160, test=dict(share_known=1., n_images=200))
    rc = run_command(redo_train.__wrapped__, 'counted --model bright --steps 3 --bs 4 --size 32 --device cpu --no-progress --no-previews --out run'.split())
    said = capfd.readouterr()
    assert rc == 0, said.err
    s = json.loads((tmp_path/'run/summary.json').read_text())
    assert (s['share_known'], s['test']['n_images']) == (1., 200) and 'share_known' in said.out
    assert run_command(redo_evaluate.__wrapped__, 'redo-evaluate --model run --split test --device cpu --no-progress'.split()[1:]) == 0
    said = capfd.readouterr().out
    assert 'share_known' in said and '200' in said and 'class of each region' not in said
    with pytest.raises(RedoError, match="no scores 'cuont'"): evaluate(Bright(), dls.valid, scores='cuont')

def test_parts_of_a_mixture():
    "A set alone is a mixture of one; two sets have scores each, and the same scores together as the joined set has"
    one = score_split(Bright(), 'digits', progress=False, scores='mixtures')
    alone = score_split(Bright(), 'digits', progress=False)
    assert {k: v for k,v in one.items() if k != 'parts'} == alone and one['parts']['digits']['n_images'] == 160
    both = score_split(Bright(), 'digits+digits', 'test', progress=False, scores='mixtures')
    assert both['parts']['together']['n_images'] == both['n_images'] == 400
    assert abs(both['iou_set']-both['parts']['together']['iou_set']) < 1e-12

def test_wide_pictures():
    "A model of pictures that are wider than high: scores, previews and windows are of that shape"
    from PIL import Image
    from redo.draw import preview_grid
    from redo.use.segment import segment_files, segment_image
    x,y = digits_arrays('valid', 48, progress=False)
    x,y = x[:8,:,8:40],y[:8,8:40]
    model = Bright(size=(32,48))
    s = evaluate(model, [(x, y.long())])
    assert s['n_images'] == 8 and 0 < s['iou_set'] <= 1
    assert preview_grid(model, x.float()/127.5-1, y, scale=1).size == (4*50, 8*34)
    assert segment_image(model, Image.new('RGB', (200,70))).masks.shape == (2,32,91)

def test_wide_files(tmp_path):
    from PIL import Image
    from redo.use.segment import segment_files
    Image.effect_noise((90,50), 60).convert('RGB').save(tmp_path/'a.png')
    res = segment_files(Bright(size=[32,48]), [tmp_path/'a.png'], tmp_path/'out', progress=False)
    assert not res['failed'] and Image.open(tmp_path/'out/a.mask.png').size == (90,50)
