"`redo-segment --example`: the photograph that comes with scikit-learn, cut by the model that comes with the package"
import json, shlex, socket
from pathlib import Path
import numpy as np, pytest
from PIL import Image
from redo.cli import redo_segment, run_command

@pytest.fixture
def said(capfd, tmp_path, monkeypatch):
    "What a command line of redo-segment says, in a folder of its own and without a network"
    def no(*args): raise OSError('no network here')
    monkeypatch.setattr(socket.socket, 'connect', no)
    monkeypatch.chdir(tmp_path)
    def _said(argv, rc=0):
        try: got = run_command(redo_segment.__wrapped__, shlex.split(argv))
        except SystemExit as e: got = e.code
        res = capfd.readouterr()
        assert got == rc and bool(res.err) == bool(rc), res.err
        return res.out+res.err
    return _said

def test_example(said):
    "The flower and nothing else is object, the files are the usual ones in the usual folder, and the photographer is named"
    out = said('--example --device cpu --no-progress')
    assert 'vultilion' in out and 'CC BY 2.0' in out and '1 pictures in segmented' in out, out
    assert sorted(o.name for o in Path('segmented').iterdir()) == ['flower.cutout.png','flower.mask.png','flower.overlay.png','regions.json']
    mask = np.array(Image.open('segmented/flower.mask.png'))
    y,x = np.ogrid[:427,:640]
    inside = (x-309)**2+(y-220)**2 # the flower is a disc of some 135 pixels
    assert mask.shape == (427,640) and (mask[inside < 115**2] == 1).mean() > .98 and (mask[inside > 160**2] == 1).mean() < .05
    back,flower = json.loads(Path('segmented/regions.json').read_text())['pictures'][0]['regions']
    assert .1 < flower['area'] < .25 and abs(back['area']+flower['area']-1) < 1e-5

def test_with_others(said):
    "Beside other pictures, by another method, in another folder, with some kinds only; nobody else's picture is credited"
    Image.new('RGB', (40,40), 'red').save('a.png')
    assert 'vultilion' in said('a.png --example --method iem --size 16 --kinds mask --out cut --device cpu --no-progress')
    assert sorted(o.name for o in Path('cut').iterdir()) == ['a.mask.png','flower.mask.png','regions.json']
    assert 'vultilion' not in said('a.png --method iem --size 16 --kinds mask --out alone --device cpu --no-progress')

def test_told(said):
    "Help shows it, and so does what is said to those who name no picture"
    assert '--example' in said('--help')
    assert '--example' in said('--no-progress', 1)
    assert not list(Path().iterdir())
