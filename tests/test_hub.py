"Weights go to the hub and come back, with a card for every model, and no network"
import json, os, shutil, subprocess, sys
import pytest, torch
from huggingface_hub import HfApi, ModelCard
import redo.all, redo.experiments.variants
from redo.core import MODELS, Decomposer, RedoError, model_class
from redo.weights import packaged_folder

registered = sorted(MODELS) # the package's own

def cached(home, name, files):
    "What huggingface_hub keeps of a download: a folder per commit, and which one `main` is"
    repo,commit = home/'hub'/f"models--{name.replace('/', '--')}",'0'*40
    (repo/'refs').mkdir(parents=True)
    (repo/'refs'/'main').write_text(commit)
    (repo/'snapshots'/commit).mkdir(parents=True)
    for k,v in files.items(): (repo/'snapshots'/commit/k).write_bytes(v)

@pytest.fixture
def hub(monkeypatch):
    "Repositories as (calls, files), in place of the hub's"
    calls,files = [],{}
    def create(api, repo_id, **kw): calls.append(('create', repo_id, kw)); return f'https://huggingface.co/{repo_id}'
    def upload(api, repo_id, folder_path, ignore_patterns=None, **kw):
        calls.append(('upload', repo_id, kw))
        files.update({o: open(os.path.join(folder_path, o), 'rb').read() for o in os.listdir(folder_path) if o not in (ignore_patterns or ())})
    monkeypatch.setattr(HfApi, 'create_repo', create)
    monkeypatch.setattr(HfApi, 'upload_folder', upload)
    return calls,files

@pytest.mark.parametrize('name', registered)
def test_round_trip(hub, tmp_path, name):
    "Any model: what is sent is weights, configuration and a card that the hub can read, and what comes back is the same"
    calls,files = hub
    small = dict(nf_mask=4) if name == 'student' else dict(nf=4)
    if 'levels' in model_class(name).options_class().model_fields: small['levels'] = 3
    model = model_class(name)(size=32, **small).eval()
    model.notes = dict(spec='folder:secret/place/beach', assignment=[0,1])
    model.step = 7
    assert model.push_to_hub(f'somebody/{name}', private=True, message='first') == f'https://huggingface.co/somebody/{name}'
    assert calls == [('create', f'somebody/{name}', dict(private=True, exist_ok=True)), ('upload', f'somebody/{name}', dict(commit_message='first'))]
    assert sorted(files) == ['README.md','config.json','model.safetensors']
    text = files['README.md'].decode()
    card = ModelCard(text)
    assert (card.data.library_name, card.data.pipeline_tag) == ('redo','image-segmentation') and name in card.data.tags
    assert f"from_pretrained('somebody/{name}')" in text and 'after 7 steps' in text and 'folder:beach' in text and 'secret' not in text
    for k in model.config: assert f'{k} ' in text
    cached(tmp_path, f'somebody/{name}', files)
    back = Decomposer.from_pretrained(f'somebody/{name}', cache_dir=tmp_path/'hub', local_files_only=True)
    assert type(back) is type(model) and (back.config, back.step, back.notes) == (model.config, 7, model.notes)
    x = torch.rand(2, 3, 32, 32)*2-1
    with torch.no_grad(): assert torch.equal(back(x), model(x))

def test_part_of_a_model(hub):
    "A mask network alone says what is left out; a card on the hub can be spared"
    calls,files = hub
    model_class('redo')(size=32, nf=4).push_to_hub('somebody/half', nets=('mask',), dtype=torch.float16)
    assert 'weights of float16' in (text := files.pop('README.md').decode()) and '(disc, latent, region not among them)' in text
    model_class('redo')(size=32, nf=4).push_to_hub('somebody/half', card=False)
    assert 'README.md' not in files and 'model.safetensors' in files

def test_refused(hub, monkeypatch):
    "One line, whatever the hub says; nothing is asked of it for a name that is none"
    from huggingface_hub.errors import LocalTokenNotFoundError
    model = model_class('student')(size=32, nf_mask=4)
    for bad in ('beach', '../x', 'a/b/c', 'a b/c', ''):
        with pytest.raises(RedoError, match='is no repository: write user/repository'): model.push_to_hub(bad)
    assert not hub[0]
    def no(*args, **kw): raise LocalTokenNotFoundError('long\nstory')
    monkeypatch.setattr(HfApi, 'create_repo', no)
    with pytest.raises(RedoError, match=r"^'a/b' could not be written on the hub \(LocalTokenNotFoundError\): log in with hf auth login[^\n]*$"): model.push_to_hub('a/b')

offline = """
import sys, torch
from redo.core import Decomposer, RedoError
from redo.use.cut import load_model
ours,theirs,run = Decomposer.from_pretrained('flowers'),Decomposer.from_pretrained('somebody/flowers'),load_model('somebody/flowers', 'cpu')
x = torch.rand(1, 3, 64, 64)*2-1
with torch.no_grad(): assert torch.equal(ours(x), theirs(x)) and torch.equal(ours(x), run(x))
try: Decomposer.from_pretrained('somebody/else')
except RedoError as e: print(e)
"""

def test_offline(tmp_path):
    "HF_HUB_OFFLINE=1 with a cache of an earlier download: what is there comes, by Python and by the commands' own way; what is not is told in a line"
    cached(tmp_path, 'somebody/flowers', {o.name: o.read_bytes() for o in (packaged_folder()/'flowers').iterdir()})
    env = dict(os.environ, HF_HUB_OFFLINE='1', HF_HOME=str(tmp_path), PYTHONPATH=os.pathsep.join(sys.path), PYTHONWARNINGS='ignore')
    env.pop('HF_HUB_CACHE', None)
    done = subprocess.run([sys.executable, '-c', offline], env=env, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert not done.returncode, done.stderr[-2000:]
    assert done.stdout.startswith("'somebody/else' is neither a folder here nor could it be fetched from the hub (") and len(done.stdout.splitlines()) == 1

def test_local_folder(tmp_path):
    "A card is written with every save, names the folder, and never takes the place of somebody's own"
    model = model_class('student')(size=32, nf_mask=4)
    folder = model.save_pretrained(tmp_path/"it's mine"/'weights')
    assert '# it\'s mine\n' in (text := (folder/'README.md').read_text()) and 'from_pretrained("it\'s mine")' in text
    (folder/'README.md').write_text('my own words')
    model.save_pretrained(folder)
    assert (folder/'README.md').read_text() == 'my own words'
    again = Decomposer.from_pretrained(shutil.copytree(folder, tmp_path/'moved'))
    assert json.loads((tmp_path/'moved'/'config.json').read_text())['model'] == again.model_name == 'student'

def test_card_is_right(tmp_path, monkeypatch, capsys):
    "What a card says to do does what it says"
    monkeypatch.chdir(tmp_path)
    text = (model_class('student')(size=32, nf_mask=4).save_pretrained('beach')/'README.md').read_text()
    exec(text.split('```python')[1].split('```')[0], dict(images=torch.zeros(3, 3, 32, 32, dtype=torch.uint8)))
    assert capsys.readouterr().out.split('\n')[0] == 'torch.Size([3, 2, 32, 32]) torch.Size([3, 32, 32])'
