"What README.md shows runs"
import re, subprocess, sys
from pathlib import Path

root = Path(__file__).resolve().parents[1]
few_steps = '''
from redo.train.learner import RegionLearner
whole = RegionLearner.fit_steps
RegionLearner.fit_steps = lambda self, n=None, **kwargs: whole(self, n or 2, **kwargs) # all else is as it stands
'''

def test_python(tmp_path):
    "The Python example, as it stands, in two steps of training instead of minutes"
    blocks = re.findall(r'^```python\n(.+?)^```', (root/'README.md').read_text(encoding='utf-8'), re.M | re.S)
    assert blocks and 'fit_steps()' in blocks[0]
    code = '\n'.join([few_steps, *blocks, "print(ReDO.from_pretrained('models/digits').config['size'], learn.model.step)"])
    res = subprocess.run([sys.executable, '-c', code], cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=600)
    assert res.returncode == 0, res.stdout
    assert res.stdout.splitlines()[-1] == '32 2'
    assert {o.name for o in (tmp_path/'models'/'digits').iterdir()} == {'model.safetensors','config.json','README.md'}
