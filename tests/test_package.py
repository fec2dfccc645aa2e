"What is built: a wheel with every module, grid and model, and nothing that is not for users"
import os, re, shutil, subprocess, sys, tarfile, zipfile
from configparser import ConfigParser
from email import message_from_string
import pytest, redo, redo.cli
from conftest import root
from redo.cli import __all__ as commands

@pytest.fixture(scope='module')
def built(tmp_path_factory):
    "Names in the source archive, and the wheel that was made of it; from a copy, since building leaves folders behind"
    src,out = tmp_path_factory.mktemp('src')/'redo',tmp_path_factory.mktemp('dist')
    shutil.copytree(root, src, ignore=shutil.ignore_patterns('.*','nbs','results','build','dist','*.egg-info','__pycache__','runs'))
    env = {k: v for k,v in os.environ.items() if k != 'PYTHONPATH'}
    done = subprocess.run([sys.executable,'-m','build','--no-isolation','-o',out], cwd=src, env=env, capture_output=True, text=True, timeout=300)
    assert not done.returncode, (done.stdout+done.stderr)[-3000:]
    with tarfile.open(next(out.glob('*.tar.gz'))) as f: names = f.getnames()
    return names,zipfile.ZipFile(next(out.glob('*.whl')))

def test_contents(built):
    "Every file of redo/ is in the wheel, licence and all, and nothing else; the source archive has what the wheel is made of"
    source,wheel = built
    ours = {o.relative_to(root).as_posix() for o in (root/'redo').rglob('*') if o.is_file() and '__pycache__' not in o.parts}
    assert {'redo/py.typed','redo/__main__.py','redo/grids/example.yml','redo/pretrained/flowers/model.safetensors'} < ours
    there = {o for o in wheel.namelist() if '.dist-info/' not in o}
    assert there == ours, sorted(there ^ ours)
    assert any(o.endswith('.dist-info/licenses/LICENSE') for o in wheel.namelist())
    assert not [o for o in source if re.search(r'/(tests|nbs|results)/|\.ipynb$', o)]
    assert {'settings.ini','CHANGELOG.md','CITATION.cff','README.md'} < {o.partition('/')[2] for o in source}

def test_metadata(built):
    "Version, requirements, extras and commands are those of the project; every command of redo.cli can be called"
    wheel,cfg = built[1],ConfigParser()
    read = lambda name: next(wheel.read(o).decode() for o in wheel.namelist() if o.endswith(f'.dist-info/{name}'))
    meta,project = message_from_string(read('METADATA')),(root/'pyproject.toml').read_text(encoding='utf-8')
    cfg.read(root/'settings.ini', encoding='utf-8')
    asked = {k.removesuffix('requirements').rstrip('_'): v.split() for k,v in cfg['DEFAULT'].items()}
    assert meta['Version'] == redo.__version__ and {*meta.get_all('Provides-Extra')} == {*asked}-{''}
    name = lambda o: re.match(r'[\w-]+', o)[0]
    assert {name(o) for o in meta.get_all('Requires-Dist') if 'extra ==' not in o} == {name(o) for o in asked['']}
    scripts = dict(re.findall(r'^(redo-\w+) = (\S+)$', read('entry_points.txt'), re.M))
    assert scripts == dict(re.findall(r'^(redo-\w+) = "(\S+)"$', project, re.M)) == {o.replace('_', '-'): f'redo.cli:{o}' for o in commands if o.startswith('redo_')}

def test_versions():
    "One version everywhere"
    said = {f: re.search(how, (root/f).read_text(encoding='utf-8'), re.M)[1] for f,how in (('CITATION.cff', r'^version: (\S+)'), ('CHANGELOG.md', r'^## (\S+)'))}
    assert {*said.values()} == {redo.__version__}, said

@pytest.fixture
def alone(built, tmp_path):
    "Python in an empty folder, with the wheel unpacked somewhere else and without the project"
    built[1].extractall(tmp_path/'site')
    env = dict(os.environ, PYTHONPATH=str(tmp_path/'site'), PYTHONWARNINGS='ignore')
    (tmp_path/'work').mkdir()
    def run(*argv):
        done = subprocess.run([sys.executable,*argv], cwd=tmp_path/'work', env=env, capture_output=True, text=True, timeout=300)
        assert not done.returncode, done.stderr[-2000:]
        return done.stdout
    assert run('-c', 'import redo; print(redo.__file__)').startswith(str(tmp_path/'site'))
    return run

def test_commands_alone(alone):
    "The package lists its commands wherever it lies"
    assert re.findall(r'^  (\w+) ', alone('-m', 'redo'), re.M) == [o.removeprefix('redo_') for o in vars(redo.cli) if o in commands and o.startswith('redo_')]
    assert alone('-m', 'redo', '--version') == f'redo {redo.__version__}\n'

@pytest.mark.skipif(os.environ.get('REDO_SLOW') != '1', reason='a whole command: REDO_SLOW=1 runs it')
def test_cuts_alone(alone, tmp_path):
    "It finds its model and cuts a picture"
    alone('-m', 'redo', 'segment', '--example', '--device', 'cpu', '--no-progress')
    assert (tmp_path/'work'/'segmented'/'flower.mask.png').is_file()
