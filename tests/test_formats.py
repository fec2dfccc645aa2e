"`redo-segment --kinds coco,labelstudio`: what other tools read, from the command"
import json
from pathlib import Path
import numpy as np, pytest
from PIL import Image, ImageDraw
from redo.cli import redo_segment
from redo.command import run_command
from redo.data.images import read_mask
from redo.draw import palette

@pytest.fixture
def cut(tmp_path, monkeypatch, capfd):
    "Three pictures with a bright disc, cut without a model"
    monkeypatch.chdir(tmp_path)
    Path('pics').mkdir()
    for i,(w,h) in enumerate(((80,60),(60,90),(64,64))):
        img = Image.new('RGB', (w,h), (20,60,20))
        ImageDraw.Draw(img).ellipse((w//3,h//3,w//3+24,h//3+24), fill=(250,220,40))
        img.save(f'pics/{i}.jpg')
    def _cut(kinds, rc=0):
        got = run_command(redo_segment.__wrapped__, ['pics','--method','iem','--size','32','--kinds',kinds,'--device','cpu','--no-progress'])
        said = capfd.readouterr()
        assert got == rc, said.err
        return said.err
    return _cut

def test_masks_are_seen(cut):
    "The picture of labels has a palette, and the numbers below it are the labels"
    cut('mask')
    img = Image.open('segmented/0.mask.png')
    assert img.mode == 'P' and set(np.unique(img)) == {0,1}
    assert (np.array(img.convert('RGB'))[np.array(img) == 1] == palette[1].numpy()).all()
    assert (read_mask('segmented/0.mask.png') == np.array(img)).all()

def test_coco(cut):
    "COCO's own library reads both files: run lengths are the masks, polygons nearly so, areas and boxes as they are"
    maskUtils = pytest.importorskip('pycocotools.mask', reason="pycocotools is not installed: pip install '.[coco]'")
    from pycocotools.coco import COCO
    cut('mask,coco')
    regions = json.loads(Path('segmented/regions.json').read_text())['pictures']
    for name,least in (('coco',1), ('coco.polygons',.9)):
        c = COCO(f'segmented/{name}.json')
        assert [o['file_name'] for o in c.loadImgs(c.getImgIds())] == [o['file'] for o in regions] and len(c.getAnnIds()) == 3
        for a,told in zip(c.loadAnns(c.getAnnIds()), regions):
            want,got = read_mask(f"segmented/{told['name']}.mask.png") == a['category_id'],c.annToMask(a) > 0
            assert (got&want).sum() >= least*(got|want).sum() and a['area'] == want.sum()
            x0,y0,x1,y1 = told['regions'][1]['box']
            assert a['bbox'] == [x0,y0,x1-x0,y1-y0]
            if least == 1: assert maskUtils.toBbox(c.annToRLE(a)).tolist() == a['bbox'] and maskUtils.area(c.annToRLE(a)) == a['area']

def test_labelstudio(cut):
    "A task a picture, without a picture of ours"
    cut('labelstudio')
    assert sorted(o.name for o in Path('segmented').iterdir()) == ['labelstudio.json','regions.json']
    tasks = json.loads(Path('segmented/labelstudio.json').read_text())
    assert [o['data']['image'] for o in tasks] == [f'/data/local-files/?d=pics/{i}.jpg' for i in range(3)]
    one = tasks[1]['predictions'][0]['result'][0]
    assert (one['original_width'], one['original_height'], one['value']['brushlabels']) == (60, 90, ['object'])

def test_unknown(cut):
    assert "unknown kind 'yolo': known are mask, overlay, cutout, coco, labelstudio" in cut('mask,yolo', 1)
