"""What nobody should give: each row of one table ends in one line on stderr, soon, and leaves nothing behind

Rows run in this process, through `run_command`; a row is an id, a command line, what is prepared in a fresh folder, and a piece of what is said."""
import json, os, resource, shlex, shutil, signal, struct, sys
from pathlib import Path
import numpy as np, pytest, torch
from PIL import Image
from redo import cli
from redo.files import LOCK
from redo.models.redo import ReDO
from redo.use.segment import load_model # also what saves

linux = sys.platform.startswith('linux')
tiny = '--size 32 --steps 1 --bs 2 --set nf=4,nf_mask=4,nf_disc=4 --device cpu --no-progress --no-previews'
grid = 'base: {steps: 1, bs: 2, device: cpu, nf: 4}\ndata: {digits: }\nsettings: {a: }\n'

@pytest.fixture(scope='module')
def shelf(tmp_path_factory):
    "What rows start from: pictures, a model, a run that has ended, a line of results, a grid"
    at,was = tmp_path_factory.mktemp('shelf'),os.getcwd()
    os.chdir(at)
    try:
        for o in ('pics','black','single'): Path(o).mkdir()
        for i in range(12):
            Image.effect_noise((32,32), 60).convert('RGB').save(f'pics/{i}.png')
            Image.new('RGB', (32,32)).save(f'black/{i}.png')
        Image.effect_noise((32,32), 60).convert('RGB').save('single/0.png')
        torch.manual_seed(0)
        model = ReDO(size=32, nf=4)
        model.notes = dict(assignment=[0,1], spec='digits')
        model.save_pretrained('good')
        torch.save(dict(config=model.config, model=model.state_dict()), 'ck.pth')
        assert cli.run_command(cli.redo_train.__wrapped__, shlex.split(f'pics {tiny} --out run --results r.jsonl')) == 0
        Path('g.yml').write_text(grid)
    finally: os.chdir(was)
    return at

# What rows prepare: functions of nothing, in the folder of the row

def place(path, make):
    "`make(path)` in a folder that is there, instead of what was there"
    def _f():
        p = Path(path)
        p.parent.mkdir(parents=True, exist_ok=True)
        p.unlink(missing_ok=True)
        make(p)
    return _f

def text(path, what): return place(path, lambda p: p.write_bytes(what if isinstance(what, bytes) else what.encode()))
def pipe(path): return place(path, os.mkfifo)
def link(path, to): return place(path, lambda p: p.symlink_to(to))

def config(path, **changes):
    "Another value in a file of JSON; names with dots go deeper"
    def _f():
        d = json.loads(Path(path).read_text())
        for k,v in changes.items():
            *where,last = k.split('__')
            at = d
            for o in where: at = at[o]
            at[last] = v
        Path(path).write_text(json.dumps(d))
    return _f

def checkpoint(**changes):
    def _f():
        d = torch.load('ck.pth', weights_only=True)
        torch.save({**d, **changes}, 'ck.pth')
    return _f

def started(**changes):
    "The run as if it had been stopped"
    def _f():
        Path('run/summary.json').unlink()
        config('run/run.json', **changes)()
    return _f

def line(**changes):
    def _f():
        d = json.loads(Path('r.jsonl').read_text().splitlines()[0])
        d['config'] = d['config'] | changes
        Path('r.jsonl').write_text(json.dumps(d | dict(id='abc'))+'\n')
    return _f

def huge_idx():
    for part in ('train','t10k'):
        for o,head in (('images-idx3', b'\0\0\x08\x03'+struct.pack('>3I', 2**22, 2**10, 2**10)), ('labels-idx1', b'\0\0\x08\x01'+struct.pack('>I', 2**22))):
            p = Path(f'mnist/{part}-{o}-ubyte')
            p.parent.mkdir(exist_ok=True)
            p.write_bytes(head+bytes(100))

def masked(values):
    "A folder whose masks are no masks"
    def _f():
        for i in range(4):
            for o in ('images','masks'):
                p = Path('set',o,f'{i}.png')
                p.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(np.full((32,32) if o == 'masks' else (32,32,3), 9*i, np.uint8)).save(p)
        values()
    return _f

def nothing(): pass

rows = []
def row(id, argv, *words, by=nothing): rows.append((id, argv, by, words))

def odd_file(path, argv, by=nothing, **words):
    "Rows where a file is something else: a pipe, a link to itself, bytes that are no text; each with a piece of what is said"
    does = dict(pipe=pipe(path), link=link(path, Path(path).name), bytes=text(path, b'\xff\xfe{'))
    for k,o in words.items(): row(f'{path}: {k}', argv, o, by=lambda k=k: (by(), does[k]()))

# Values of redo-train
new = f'redo-train pics --out new {tiny}'
def change(id, what, *words): row(f'set {id}', f"redo-train pics --out new --size 32 --device cpu --no-progress --set '{what}'", *words)
for k,v in (('steps',-1), ('steps',0), ('bs',0), ('bs',-3), ('bs',1.5), ('nf',-1), ('nf',10**9), ('nf_mask',0), ('n_res',99), ('nz',0), ('nz','inf'), ('temperature',0), ('w_z','nan'), ('w_z',-1), ('w_z','-inf'), ('w_z','many'),
    ('lr','nan'), ('lr',-1e-3), ('lr','inf'), ('lr_mask',1e9), ('train.lr.disc','x'), ('wd',-1), ('decay',2), ('betas','1:2'), ('betas','.5'), ('optimizer','lbfgs'), ('rule','decay(1)'), ('clip',-1), ('bf16','maybe'), ('resize','cubic'), ('flip',2),
    ('crop','nan'), ('crop',0), ('crop',1e9), ('zoom',0), ('jitter',-1), ('ema',1.5), ('min_area','nan'), ('w_area',-1), ('redraws','some'), ('gen_every',0), ('collapse',5), ('restarts',-1), ('steps','9'*5000)):
    change(f'{k}={v}'[:40], f'{k}={v}', f"{ {'lr': 'lr.all', 'wd': 'wd', 'lr_mask': 'lr.mask', 'train.lr.disc': 'lr.disc'}.get(k, k)}")
for what,*words in (('model.no_such=1', "unknown option 'model.no_such'"), ('no.such.name=1', "unknown option 'no.such.name'"), ('train.=1', 'unknown option'), ('.=1', 'unknown option'), ('nf', 'write name=value'), ('=3', "unknown option ''"), ('nf=4,nf=8', 'said twice'),
    ('lr.nobody=1e-3', 'lr.nobody: the groups are'), ('model.w_z.deep=1', 'unknown option'), ('inputs.pseudo=crf', 'inputs.pseudo'), ('data.inputs=3', 'inputs'), ('disc_input=masks', "a model that has it is redo_variant"), ('train.model.nf=4', 'unknown option'),
    ('__class__=1', 'unknown option'), ('model.config=1', 'unknown option'), ('name=x', 'unknown option'), ('x'*5000+'=1', 'unknown option')): change(what[:40], what, *words)
for id,argv,*words in (('n-regions 100000', '--n-regions 100000', 'n_regions=100000'), ('n-regions 0', '--n-regions 0', 'n_regions=0'), ('n-regions -1', '--n-regions=-1', 'n_regions=-1'), ('n-regions text', '--n-regions two', 'two'), ('seed 2**64', f'--seed {2**64}', str(2**64)),
    ('seed huge', f'--seed 1{"0"*400}', 'seed=1000'), ('size 0', '--size 0', 'picture size 0'), ('size 33', '--size 33', '33'), ('size 10**6', '--size 1000000', '1000000'), ('size text', '--size big', 'big'), ('bs huge', '--bs 1000000', 'bs=1000000'), ('device', '--device abacus', "device 'abacus'"),
    ('recipe', '--recipe best', "unknown recipe 'best'"), ('recipe of another model', '--model redo --recipe robust', "unknown recipe 'robust' of model 'redo'"), ('recipe of the student', '--model redo --recipe student', "unknown recipe 'student'"), ('model', '--model redoo', "no model 'redoo'"),
    ('model of a path', '--model ../x', "no model '../x'"), ('init', '--init no/such/model', 'no/such/model'), ('empty option', "--set ''", '--set is empty'), ('unknown flag', '--nope 3', '--nope'), 
    ('model that needs', '--model student', "needs 'pseudo'")):
    row(f'train {id}', f'redo-train pics --out new --size 32 --device cpu --no-progress {argv}', *words)
row('train resume', 'redo-train --resume', '--resume needs --out')
row('train root', 'redo-train flowers17 --root no/such --out new', 'no/such')
for spec,*words in (('nosuch', "unknown set 'nosuch'"), ('no/such/folder', 'no folder no/such/folder'), ('digits-(0,0)', 'picture size (0, 0)'), ('digits-(32,48)', 'square'), ('digits:x', "unknown variant 'x'"), ('digits-upside', "unknown flag 'upside'"), ('c2mnist:-5', 'c2mnist'), ('folder:', 'names no folder'),
    ('a+b+c', "unknown set 'a'"), ('x'*5000, '5,000 characters'), ('good', 'good holds no pictures'), ('single', '1 training pictures are fewer')): row(f'spec {spec}'[:40], f"redo-train '{spec}' --out new --steps 1 --device cpu --no-progress", *words)

# Folders and files of a data set
row('pictures of bytes', new, '0.png', by=text('pics/0.png', b'\x89PNG\r\n\x1a\n'+bytes(50)))
row('a picture that is empty', new, '0.png: it is empty', by=text('pics/0.png', b''))
row('a bomb of a picture', new, '0.png', by=lambda: Path('pics/0.png').write_bytes(b'BM'+struct.pack('<IIIIiiHHIIiiII', 54, 0, 54, 40, 2**30, 2**30, 1, 24, 0, 0, 0, 0, 0, 0)))
odd_file('pics/0.png', new, pipe='0.png: it is a pipe', link='0.png')
row('a name of a line break', new, r'a\nb.png: it is empty', by=text('pics/a\nb.png', b''))
for i,s in enumerate(('null', '[]', '3', '{"train": 3}', '{"train": ["../0"]}', '{"train": {"a": 1}}', '['*10**5, '\ufeff{', '{"train": ["\\ud800"]}', '{"train": ["0"], "val": ["0"]}')): row(f'splits {i}', new, 'splits.json', by=text('pics/splits.json', s))
odd_file('pics/splits.json', new, pipe='splits.json: it is a pipe', link='splits.json', bytes='splits.json')
row('a mask that is no picture', f'redo-train set --out new {tiny}', 'masks/', by=masked(lambda: [text(f'set/masks/{i}.png', b'hello')() for i in range(4)]))
row('a mask that is a pipe', f'redo-train set --out new {tiny}', 'it is a pipe', by=masked(lambda: [pipe(f'set/masks/{i}.png')() for i in range(4)]))
row('digits of 4 TiB', 'redo-train c2mnist:100-(32,32) --out new --steps 1 --device cpu --root . --no-progress', 'cut short or too long', by=huge_idx)
row('digits of another kind', 'redo-train c2mnist:100-(32,32) --out new --steps 1 --device cpu --root . --no-progress', 'is not an idx file', by=lambda: (huge_idx(), text('mnist/train-images-idx3-ubyte', b'hello')()))

# Folders of runs
go = 'redo-train --resume --out run --device cpu --no-progress'
row('a folder of others', f'redo-train pics --out pics {tiny}', 'is not empty and not ours')
row('a file for a folder', f'redo-train pics --out pics/0.png {tiny}', 'cannot use pics/0.png as a folder')
row('a name too long', f'redo-train pics --out {"x"*300} {tiny}', 'cannot use')
row('results in a folder', f'redo-train pics --out new --results pics {tiny}', 'pics')
row('a run that has ended', f'redo-train pics --out run {tiny}', 'holds a finished run already')
for i,s in enumerate(('null', '[]', '3', '"x"', '{}', '['*10**5, '{"spec":', '{"spec": 3, "size": "x", "n_regions": [], "seed": {}, "recipe": null}')): row(f'run.json {i}', go, 'run/run.json', by=lambda s=s: (started()(), text('run/run.json', s)()))
odd_file('run/run.json', go, started(), pipe='no run.json', bytes='run/run.json: it is no UTF-8 text')
for k,v,*words in (('recipe','robust',"run.json is damaged (recipe='robust'"), ('recipe__train__bs','x',"bs='x'"), ('recipe__train__nff',1,"'train.nff'"), ('recipe__model__nf',-1,'nf=-1'), ('recipe__model',[],'not a table'), ('recipe__model_name','nobody',"no model 'nobody'"), ('recipe__name',5,'no text'),
    ('size','big','size'), ('size',-4,'size'), ('size',[32,'x'],'size'), ('n_regions','two','n_regions'), ('n_regions',10**9,'n_regions'), ('seed','x',"run.json is damaged (seed='x'"), ('seed',2**80,'seed'), ('spec',['digits'],'run.json is damaged (spec='), ('spec','nosuch',"'nosuch'"), ('start',3,'start'), ('resumed','x','resumed'), ('told',[1],'told')):
    row(f'run.json {k}={v}'[:40], go, *words, by=started(**{k: v}))
for i,s in enumerate((b'', b'hello', b'PK\x03\x04'+bytes(100))): row(f'checkpoint {i}', go, 'checkpoint.pth', by=lambda s=s: (started()(), text('run/checkpoint.pth', s)()))
row('checkpoint of a list', go, 'checkpoint.pth', by=lambda: (started()(), torch.save([1,2], 'run/checkpoint.pth')))
row('checkpoint of nothing', go, 'checkpoint.pth', by=lambda: (started()(), torch.save({}, 'run/checkpoint.pth')))
odd_file('run/checkpoint.pth', go, started(), pipe='checkpoint.pth: it is a pipe', bytes='checkpoint.pth')
row('checkpoint cut short', go, 'checkpoint.pth', by=lambda: (started()(), os.truncate('run/checkpoint.pth', 5000)))

# Models
use = 'redo-segment pics --out new --device cpu --no-progress --model'
for m,*words in (('no/such/model/here', 'there is no model no/such'), ('a b', 'there is no model a b'), ('..', '.. holds no model'), ('pics', 'pics holds no model'), ('pics/0.png', 'pics/0.png is damaged'), ('/dev/zero', '/dev/zero: it is a pipe, a socket or a device'),
    ('x'*300, 'there is no model xxx')): row(f'model {m}'[:30], f"{use} '{m}'", *words)
for i,s in enumerate(('null', '[]', '3', '{}', '['*10**5, '{"model": [], "config": {}}', '{"model": "redo", "config": 3}', '{"model": "nobody", "config": {}}')): row(f'config.json {i}', f'{use} good', 'good', by=text('good/config.json', s))
odd_file('good/config.json', f'{use} good', bytes='config.json')
row('config.json endless', f'{use} good', 'config.json', by=link('good/config.json', '/dev/zero'))
for k,v in (('nf_mask',-1), ('temperature','x'), ('n_res',10**9), ('size',10**6), ('size',{'a': 1}), ('n_regions',10**5), ('seed',2**90), ('nz',[1]), ('gain',None), ('no_such',1)): row(f'config {k}={v}', f'{use} good', 'good', k, by=config('good/config.json', **{f'config__{k}': v}))
for k,v in (('notes',3), ('notes',{'assignment': 'x'}), ('notes',{'assignment': [0,999]})): row(f'notes {v}'[:40], f'{use} good', 'good', by=config('good/config.json', notes=v))
row('weights cut short', f'{use} good', 'good', by=lambda: os.truncate('good/model.safetensors', 2000))
row('weights of bytes', f'{use} good', 'good', by=text('good/model.safetensors', b'\xff'*99))
odd_file('good/model.safetensors', f'{use} good', pipe='model.safetensors: it is a pipe')
row('a learner', f'{use} l.pkl', 'l.pkl', 'runs code', by=text('l.pkl', b'cos\nsystem\n(S"touch evil"\ntR.'))
row('ck.pth of an odd model', f'{use} ck.pth', 'ck.pth', by=checkpoint(config=[1]))
row('ck.pth of a state that is a list', f'{use} ck.pth', 'ck.pth', by=checkpoint(model=[1]))
row('ck.pth without weights', f'{use} ck.pth', 'ck.pth', by=checkpoint(model={}))
for id,argv,*words in (('bs', '--bs 0', '--bs 0'), ('kinds', '--kinds all', "unknown kind 'all'"), ('size', '--size 7', '7'), ('size huge', '--size 10000000', 'at most 4096 pixels'), ('background', '--background 9', '9'), ('refine', '--refine crf', "'crf'"), ('method', '--method magic', "'magic'")):
    row(f'segment {id}', f'redo-segment pics --model good --out new --device cpu --no-progress {argv}', *words)
divide = 'redo-segment pics --method grabcut --out new --device cpu --no-progress --parts'
for m,*words in (('no/such/model/here', 'there is no model no/such'), ('pics', 'pics holds no model'), ('pics/0.png', 'pics/0.png is '), ("''", '--parts is empty'), ('good', "--parts good: a model 'redo' has 1 region beside a ground, and no parts"), ('ck.pth', 'ck.pth')):
    row(f'segment parts {m}', f'{divide} {m}', *words, by=checkpoint(model={}) if m == 'ck.pth' else nothing)
row('segment parts of all methods', f'{divide} good --method all', '--method all shows each method as it is: choose one for --parts')
row('segment nothing', 'redo-segment --model good', 'name pictures')
row('segment no such picture', 'redo-segment none.png --model good --out new --no-progress', 'none.png: there is no such file')
row('redraw n-z', 'redo-redraw pics --model good --out new --n-z 0 --no-progress', 'at least 1')
row('redraw seed', f'redo-redraw pics --model good --out new --seed {2**64} --no-progress', 'seed')
row('evaluate split', 'redo-evaluate --model good --split exam --no-progress --device cpu', "'exam'")
row('evaluate data', 'redo-evaluate --model good --data pics --no-progress --device cpu', 'folder:pics has no truth')
row('evaluate bs', 'redo-evaluate --model good --bs 0 --no-progress --device cpu', 'bs')
row('evaluate scores', 'redo-evaluate --model good --json pics --no-progress --device cpu', 'pics')
row('export', 'redo-export --model good --out pics', 'cannot write pics: it is a folder')

# Grids, lines of results, measurements
for i,(s,*words) in enumerate((('null', 'holds no grid'), ('[]', 'holds no grid'), ('3', 'holds no grid'), ('{', 'cannot read g.yml'), ('['*10**5, 'nested too deeply'), (grid+'seeds: 0', 'seeds is 0'), (grid+'seeds: [18446744073709551616]', 'seeds is'), (grid+'smoke: []\nseed: 3', "unknown entry 'seed'"),
    (grid.replace('{a: }', '{a: {w_z: .nan}}'), "'a': w_z=nan"), (grid.replace('{a: }', '{a: {nf: -1}}'), "'a': nf=-1"), (grid.replace('{a: }', '{a: {model.deep.down: 1}}'), "unknown option 'model.deep.down'"), (grid.replace('{a: }', '{a: {1: 2}}'), "unknown option '1'"),
    (grid.replace('{a: }', '{a: {size: x}}'), "size is 'x'"), (grid.replace('{a: }', '{a: {n_regions: 100000}}'), 'n_regions'), (grid.replace('{a: }', '{a: {recipe: {model: {}, train: {bs: x}, data: {}}}}'), "bs='x'"), (grid.replace('{a: }', '{a: {recipe: paper, model: student}}'), "unknown recipe 'paper' of model 'student'"),
    (grid.replace('{a: }', '{a: {lr: [1]}}'), "'a': lr"), (grid.replace('{a: }', '{a: {lr: {mask: x}}}'), "lr.mask='x'"), (grid.replace('digits: ', 'nosuch: '), "unknown set 'nosuch'"), ('a: &a [*a]', 'holds itself'))): row(f'grid {i}', 'redo-experiment g.yml --no-progress', *words, by=text('g.yml', s))
odd_file('g.yml', 'redo-experiment g.yml', pipe='g.yml: it is a pipe', bytes='no UTF-8')
row('grid none', 'redo-experiment nosuch', 'no grid nosuch')
for id,argv,*words in (('jobs', '--jobs 0', '0 runs side by side'), ('seeds', '--seeds x', "seeds is 'x'"), ('only', '--only b', "no setting 'b'"), ('data', '--data b', "no data set 'b'"), ('scheduler', '--scheduler tcp://127.0.0.1:1 --jobs 2', 'workers of a scheduler'), ('folder', '--folder g.yml', 'g.yml')): row(f'grid {id}', f'redo-experiment g.yml --no-progress {argv}', *words)
again = 'redo-experiment --again abc --results r.jsonl --folder new --no-progress'
for id,s in (('null','null\n'), ('list','[1]\n'), ('deep','['*10**5+'\n'), ('bytes',b'\xff\xfe\n')): row(f'line {id}', again, "r.jsonl holds no result with the id 'abc'", by=text('r.jsonl', s))
for id,s in (('no config','{"id": "abc"}\n'), ('config a list','{"id": "abc", "config": [1]}\n')): row(f'line {id}', again, "'abc' cannot be run again: its line has no 'config'", by=text('r.jsonl', s))
for k,v,*words in (('recipe',3,'pairs'), ('recipe',{'model': 3, 'train': {}, 'data': {}},'not a table'), ('seed',-1,'seeds is'), ('seed',2**64,'seeds is'), ('size','x',"size is 'x'"), ('size',[32,'x'],'size'), ('n_regions',1e99,'n_regions'), ('spec',3,'spec'), ('spec','nosuch',"'nosuch'"), ('name','a\nb','use one line')): row(f'line {k}={v}'[:40], again, *words, by=line(**{k: v}))
for id,argv,*words in (('seconds nan', '--seconds nan', 'seconds'), ('seconds inf', '--seconds inf', 'seconds'), ('seconds -1', '--seconds=-1', 'seconds'), ('bs', '--bs 0', 'batch size 0'), ('bs text', '--bs x', '--bs x'), ('size', '--size 33', '33'), ('size 0', '--size 0', 'size=0'), ('variants', '--variants best', 'best'), ('set', '--set no=1', "'no'"), ('n-regions', '--n-regions 100000', 'n_regions')): row(f'benchmark {id}', f'redo-benchmark --device cpu --no-progress {argv}', *words)

# Lessons
teach = 'redo-teach pics --out new --size 32 --net-size 32 --nf-mask 8 --bs 4 --steps 1 --device cpu --no-test --no-progress'
for argv,*words in (('--teacher grabcut:.6', 'margin'), ('--teacher grabcut:nan', 'margin'), ('--teacher iem:-1', 'size'), ('--teacher crf', "unknown teacher 'crf'"), ('--teacher kmeans@4', '16 to 1024'), ('--rounds 0', 'rounds=0'), ('--steps 0', 'steps=0'), ('--lr nan', 'lr'), ('--bs 0', 'bs=0'), ('--size 4', 'size=4'), ('--size 1000000', 'size='),
    ('--net-size 100', '100'), (f'--seed {2**64}', 'seed'), ('--nf-mask 0', 'nf_mask=0'), ('--n-res 99', 'n_res=99'), ('--refine crf', "'crf'")): row(f'teach {argv}', f'{teach} {argv}', *words)
for o,t,what in (('black','grabcut','0 of 11 masks of grabcut@32 are plausible'), ('black','kmeans','0 of 11 masks of kmeans@32 are plausible'), ('single','grabcut','0 of 1 masks of grabcut@32'), ('single','kmeans','1 training pictures are fewer')):
    row(f'teach {t} {o}', f'{teach} --teacher {t}'.replace('pics', o), what)

@pytest.fixture
def call(shelf, tmp_path, monkeypatch, capfd, request):
    "`call(row)` runs it in a folder of its own, for ten seconds at most: exit status, stderr and what is left in new/"
    monkeypatch.chdir(tmp_path)
    argv = request.node.callspec.params['argv']
    for o in shelf.iterdir():
        if o.name in argv or o.name == 'pics': shutil.copytree(o, o.name) if o.is_dir() else shutil.copy(o, o.name)
    def late(*args): raise TimeoutError('this hangs')
    old,was = signal.signal(signal.SIGALRM, late),resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (2**34,was[1])) # what wants more than that is stopped before the machine is
    def _f(argv):
        name,*argv = shlex.split(argv)
        capfd.readouterr()
        signal.alarm(10)
        try: rc = cli.run_command(getattr(cli, name.replace('-', '_')).__wrapped__, argv)
        except SystemExit as e: rc = e.code
        finally: signal.alarm(0)
        return rc,capfd.readouterr().err
    yield _f
    signal.signal(signal.SIGALRM, old), resource.setrlimit(resource.RLIMIT_AS, was)

@pytest.mark.skipif(not linux, reason='pipes, links and names as here')
@pytest.mark.parametrize('id,argv,by,words', rows, ids=[o[0] for o in rows])
def test_hostile(call, id, argv, by, words):
    by()
    rc,err = call(argv)
    assert rc in (1,2) and err.count('\n') == 1 and err.startswith(shlex.split(argv)[0]+': ') and err.isprintable() is False and err[:-1].isprintable(), (rc, err[:2000])
    assert len(err) < 4000 and 'Traceback' not in err
    assert words and all(words), 'a row without a piece of what is said'
    for o in words: assert o in err, (o, err)
    left = [o for o in Path('new').rglob('*') if o.is_file() and o.name != LOCK] if Path('new').exists() else []
    assert not left, left
    assert not Path('evil').exists()

def test_table():
    assert len(rows) >= 100 and len({o[0] for o in rows}) == len(rows)
