"What README.md shows runs"
import re
from pathlib import Path

root = Path(__file__).resolve().parents[1]
few_steps = '''
from redo.train.learner import RegionLearner
whole = RegionLearner.fit_steps
RegionLearner.fit_steps = lambda self, n=None, **kwargs: whole(self, n or 2, **kwargs) # all else is as it stands
'''

def test_python(tmp_path, python):
    "The Python example, as it stands, in two steps of training instead of minutes"
    blocks = re.findall(r'^```python\n(.+?)^```', (root/'README.md').read_text(encoding='utf-8'), re.M | re.S)
    assert blocks and 'fit_steps()' in blocks[0]
    code = '\n'.join([few_steps, *blocks, "print(ReDO.from_pretrained('models/digits').config['size'], learn.model.step)"])
    rc = python(code, cwd=tmp_path, out=(log := tmp_path/'said.txt')).wait(600)
    assert rc == 0, log.read_text()
    assert log.read_text().splitlines()[-1] == '32 2'
    assert {o.name for o in (tmp_path/'models'/'digits').iterdir()} == {'model.safetensors','config.json','README.md'}
