"A run that is killed, or loses its disk, its data or its numbers: one clear line, a checkpoint that loads, and the same figures in the end"
import json, math, os, random, re, shutil, signal, subprocess, sys, time
from pathlib import Path
import pytest

slow = os.environ.get('REDO_SLOW') == '1' # 20 kills, each of a command that begins with Python itself
options = '--size 32 --steps 40 --bs 8 --set nf=4,nf_mask=4,nf_disc=4,collapse=0 --device cpu --no-progress'.split() # a checkpoint every 4 steps

# Python and PyTorch take seconds to start, so most runs are forked off a process that has imported everything and done nothing.

nursery = '''
import json, os, sys
import redo.study.run
from redo.cli import redo_train, run_command
for line in open(sys.argv[1]):
    argv,log = json.loads(line)
    pid = os.fork()
    if not pid:
        fd = os.open(log, os.O_WRONLY|os.O_CREAT|os.O_TRUNC)
        os.dup2(fd, 1), os.dup2(fd, 2)
        try: rc = run_command(redo_train.__wrapped__, argv)
        finally: sys.stdout.flush()
        os._exit(rc)
    with open(log+'.pid', 'w') as f: f.write(f'{pid} ')
    rc = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    with open(log+'.rc', 'w') as f: f.write(f'{rc} ')
'''

def number(path): # whole once the space behind it is there
    "Number in a file that another process writes; None before it is there"
    return int(path.read_text()) if path.exists() and path.read_text().endswith(' ') else None

def until(cond, seconds=300):
    "Wait for a condition; its value"
    end = time.time()+seconds
    while not (res := cond()):
        if time.time() > end: raise TimeoutError
        time.sleep(.001)
    return res

class Command:
    "redo-train as a process of its own"
    def __init__(self, argv, log, env):
        self.log = log
        with open(log, 'w') as f: self.p = subprocess.Popen([sys.executable, '-c', 'import sys; from redo.cli import redo_train; sys.exit(redo_train())', *argv], env=env, stdout=f, stderr=f)
        self.pid,self.poll = self.p.pid,self.p.poll
    def said(self): return self.log.read_text()
    def wait(self):
        until(lambda: self.poll() is not None)
        return self.poll()

class Forked(Command):
    "The same, forked off the nursery"
    def __init__(self, argv, log, mother):
        self.log = log
        print(json.dumps([argv, str(log)]), file=mother, flush=True)
        self.pid = until(lambda: number(Path(f'{log}.pid')))
    def poll(self): return number(Path(f'{self.log}.rc'))

@pytest.fixture(scope='module')
def train(tmp_path_factory, python):
    "`train(*argv)` starts redo-train, with `own=True` from Python on"
    tmp = tmp_path_factory.mktemp('runs')
    env = dict(os.environ, PYTHONPATH=os.getcwd(), PYTHONWARNINGS='ignore', REDO_CACHE=str(tmp/'cache'))
    os.mkfifo(tmp/'lines')
    p,started = python(nursery, tmp/'lines', out=tmp/'mother.txt', env=env),[]
    mother = open(tmp/'lines', 'w')
    def start(*argv, own=False):
        argv,log = [str(o) for o in argv],tmp/f'{len(started)}.txt'
        started.append(Command(argv, log, env) if own else Forked(argv, log, mother))
        return started[-1]
    yield start
    for o in started:
        if o.poll() is None: os.kill(o.pid, signal.SIGKILL)
    mother.close()
    p.wait()

def done(run):
    "Wait for a run that must succeed"
    rc = run.wait()
    assert rc == 0, run.said()

def failed(run, *words):
    "Wait for a run that must end with exit status 1 and one line"
    rc,said = run.wait(),run.said()
    assert rc == 1 and re.fullmatch(r'redo-train: [^\n]+\n', said) and all(o in said for o in words), (rc, said)
    return said

def rows(out): return max(0, len((out/'losses.csv').read_text().splitlines())-1) if (out/'losses.csv').exists() else 0

def half_written(out, name=''): return [o for o in out.rglob('.*') if re.fullmatch(rf'\.{name}\w*-[a-z0-9_]{{8}}\.\w+', o.name)] if out.exists() else []

def good_checkpoint(f):
    "Steps in a checkpoint, after reading it and looking at every number"
    import torch
    from redo.train.resume import check_finite
    from redo.weights import safe_load
    state = safe_load(f)
    check_finite(state)
    n = state['model']['_extra_state']['step']
    steps = state['callbacks']['LossHistory']['steps']
    assert [o['step'] for o in steps] == list(range(n)) and all(math.isfinite(v) for o in steps for v in o.values())
    return n

def same(a, b):
    "Do two finished runs agree in every bit of losses and weights, and in all scores? Is nothing left half-written?"
    import pandas as pd
    for o in ('losses.csv','weights/model.safetensors'): assert (a/o).read_bytes() == (b/o).read_bytes(), o
    assert pd.read_csv(a/'history.csv').drop(columns='seconds').equals(pd.read_csv(b/'history.csv').drop(columns='seconds'))
    drop = lambda o: {k: v for k,v in json.loads((o/'summary.json').read_text()).items() if k not in ('id','run','seconds','date','command','resumed')}
    assert drop(a) == drop(b)
    assert not half_written(b), half_written(b)

@pytest.fixture(scope='module')
def whole(train, tmp_path_factory):
    "An uninterrupted run: its folder, its time, and the time to its first step"
    out = tmp_path_factory.mktemp('whole')/'run'
    run,start = train('digits', *options, '--out', out, own=slow),time.time()
    until(lambda: (out/'run.json').exists() or run.poll() is not None)
    first = time.time()-start
    done(run)
    assert rows(out) == 40
    return out,time.time()-start,first

# Killed

def kill(run, out, moment):
    "Kill a run at a moment; False where it was over before"
    kind,x = moment
    if kind == 'time':
        end = time.time()+x
        while time.time() < end and run.poll() is None: time.sleep(.001)
    else: # while a file is half-written: stopped first, to be sure of it
        while run.poll() is None:
            if half_written(out, x):
                os.kill(run.pid, signal.SIGSTOP)
                time.sleep(.02)
                if half_written(out, x): break
                os.kill(run.pid, signal.SIGCONT)
    if run.poll() is None: os.kill(run.pid, signal.SIGKILL)
    return run.wait() == -signal.SIGKILL

def test_kill_9(train, whole, tmp_path):
    "Killed at random moments, in start-up and in the middle of writing a checkpoint too, and resumed each time: the same run"
    ref,total,first = whole
    seed = int(os.environ.get('REDO_FAULT_SEED', random.randrange(10**6)))
    rng,n,left,log,finished,last = random.Random(seed),20 if slow else 3,0,[],0,0
    kinds = [['write','start','any','any'][i%4] for i in range(n)]
    out = tmp_path/'run0'
    argv = lambda: ('digits', *options, '--out', out, '--resume', '--results', tmp_path/'results.jsonl')
    try:
        while kinds:
            x = dict(start=('time', rng.uniform(0, first)), any=('time', rng.uniform(0, total)), write=('write', rng.choice(['checkpoint','checkpoint','losses','history'])))[kinds[0]]
            was = rows(out)
            if kill(run := train(*argv(), own=slow), out, x):
                kinds.pop(0)
                left += len(half_written(out))
                log.append((*x, was, rows(out)))
                last,before = good_checkpoint(out/'checkpoint.pth') if (out/'checkpoint.pth').exists() else 0,last
                assert last >= before
            else: # it was faster: compare, and begin another
                done(run)
                same(ref, out)
                finished += 1
                out,last = tmp_path/f'run{finished}',0
        done(train(*argv(), own=slow))
        same(ref, out)
        assert left >= 1
        ids = [json.loads(o)['id'] for o in (tmp_path/'results.jsonl').read_text().splitlines()]
        assert len(set(ids)) == 1 and len(ids) > finished, ids # the same configuration; killed between line and summary, a run says its line again
    finally: print(f'REDO_FAULT_SEED={seed}: {finished+1} runs, {left} files left half-written, (kind, seconds or file, steps written before and after): {log}')

# The disk

disk = '''
import json, os, resource, subprocess, sys, time
from pathlib import Path
import redo.study.run
from redo.cli import redo_train, run_command
own,d,options = sys.argv[1] == 'own',Path(sys.argv[2]),sys.argv[3:]
d.mkdir()
if own: subprocess.run(['mount','-t','tmpfs','-o','size=3m','none',d], check=True)
res = {}
def start(name, out):
    pid = os.fork()
    if pid: return pid
    fd = os.open(d.parent/f'{name}.txt', os.O_WRONLY|os.O_CREAT)
    os.dup2(fd, 1), os.dup2(fd, 2)
    rc = run_command(redo_train.__wrapped__, ['digits', *options, '--out', str(out), '--resume', '--no-previews'])
    sys.stdout.flush()
    os._exit(rc)
def end(name, pid): res[name] = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]),(d.parent/f'{name}.txt').read_text()
def fill():
    with open(d/'fill', 'wb', buffering=0) as f:
        try:
            while f.write(bytes(4096)): pass
        except OSError: pass
csv,pid = d/'run/history.csv',start('full', d/'run')
while not csv.exists() or len(csv.read_text().splitlines()) < 4: time.sleep(.002)
if own: fill()
else: resource.prlimit(pid, resource.RLIMIT_FSIZE, (1000,1000)) # any larger file is one too many
end('full', pid)
(d.parent/'kept.pth').write_bytes((d/'run/checkpoint.pth').read_bytes())
res['left'] = sorted(o.name for o in (d/'run').glob('.*') if o.name != '.redo.lock')
if own:
    end('still full', start('still full', d/'run'))
    end('new', start('new', d/'other'))
    (d/'fill').unlink()
end('resumed', start('resumed', d/'run'))
for o in ('losses.csv','history.csv','summary.json'): (d.parent/o).write_bytes((d/'run'/o).read_bytes())
if own: subprocess.run(['mount','-o','remount,ro',d], check=True)
elif os.geteuid(): d.chmod(0o555)
if own or os.geteuid(): end('locked', start('locked', d/'other'))
d.chmod(0o755) if not own else None
(d.parent/'res.json').write_text(json.dumps(res))
'''

def test_full_disk(whole, tmp_path):
    "The disk fills up during a run, and is read-only for another: a small file system of its own where the system lets us mount one, else a limit on the size of files"
    own = not subprocess.run(['unshare','-rm','sh','-c','mount -t tmpfs none "$0"', tmp_path], capture_output=True).returncode if shutil.which('unshare') else False
    print('a file system of its own' if own else 'a limit on the size of files')
    env = dict(os.environ, PYTHONPATH=os.getcwd(), PYTHONWARNINGS='ignore')
    cmd = [*(['unshare','-rm'] if own else []), sys.executable, '-c', disk, 'own' if own else 'limit', tmp_path/'disk', *options]
    p = subprocess.run(cmd, env=env, capture_output=True, text=True, timeout=300)
    assert p.returncode == 0, p.stderr
    res = json.loads((tmp_path/'res.json').read_text())
    assert res.pop('left') == []
    assert res.pop('resumed')[0] == 0
    assert 0 < good_checkpoint(tmp_path/'kept.pth') < 40
    assert (tmp_path/'losses.csv').read_bytes() == (whole[0]/'losses.csv').read_bytes()
    assert len(res) == (4 if own else 1 + bool(os.geteuid()))
    for name,(rc,said) in res.items(): assert rc == 1 and re.fullmatch(r'redo-train: cannot write [^\n]+; free some space or choose another folder\n', said), (name, rc, said)

# The data

def test_vanished_data(train, tmp_path):
    "The folder of pictures goes away while training (which has them in memory), before a resume, and before a start"
    from PIL import Image
    import redo.data.toy
    from redo.data.spec import get_source
    data,gone = tmp_path/'pictures',tmp_path/'elsewhere'
    data.mkdir()
    for i,o in enumerate(get_source('digits').pictures('valid', 32).images[:24]): Image.fromarray(o.permute(1,2,0).numpy()).save(data/f'{i:02}.png')
    def begin(out, wait=True):
        run = train(data, *options, '--no-previews', '--out', tmp_path/out, '--resume')
        if wait: until(lambda: rows(tmp_path/out) >= 8 or run.poll() is not None)
        return run
    done(begin('whole', False))
    run = begin('during')
    data.rename(gone)
    done(run)
    same(tmp_path/'whole', tmp_path/'during')
    gone.rename(data)
    assert kill(begin('between'), tmp_path/'between', ('time', 0))
    data.rename(gone)
    said = failed(begin('between', False), f'there is no folder {data}')
    failed(begin('before', False), f'there is no folder {data}')
    assert not (tmp_path/'before').exists() and good_checkpoint(tmp_path/'between/checkpoint.pth') >= 4 # losses.csv is written first
    gone.rename(data)
    done(begin('between', False))
    same(tmp_path/'whole', tmp_path/'between')

# The numbers

@pytest.mark.parametrize('what,every', [('picture',1), ('picture',25), ('weight',25), ('moment',25), ('logged loss',25)])
def test_nan(what, every, tmp_path, monkeypatch, capsys):
    "NaN in step 15 of 40: one line that says where, and the last checkpoint, which is free of it; losses looked at every step, or every 25 as on an accelerator"
    import torch, redo.study.run, redo.train.learner
    from fastai.callback.core import Callback
    from redo.cli import redo_train, run_command
    class Poison(Callback):
        order = 95
        def before_batch(self):
            if not self.training or self.model.step != 15: return
            if what == 'picture': self.learn.xb = (self.x.index_fill(0, torch.tensor([1]), math.nan),)
            if what == 'weight': self.model.mask.head[1].weight.data[0] = math.nan
            if what == 'moment': self.opt.opt.state[self.model.mask.head[1].weight]['exp_avg_sq'][0] = math.nan
    class Spoil(Callback):
        order = 105
        def after_batch(self):
            if self.training and self.model.step == 16 and what == 'logged loss': self.learn.phase_losses['disc_real'] = torch.tensor(math.inf)
    def learner(*args, **kwargs):
        learn = redo.train.learner.redo_learner(*args, **kwargs)
        learn.loss_history.check_every = every
        return learn.add_cbs([Poison(), Spoil()])
    monkeypatch.setattr(redo.study.run, 'redo_learner', learner)
    argv = ['digits', *options, '--no-previews', '--out', str(tmp_path/'run')]
    rc,said = run_command(redo_train.__wrapped__, argv),capsys.readouterr().err
    assert rc == 1 and re.fullmatch(r'redo-train: [^\n]+\n', said), said
    n = good_checkpoint(tmp_path/'run/checkpoint.pth')
    assert 12 <= n <= 15 and re.search(r' (at|after) step 1[56]: ', said) and f'checkpoint.pth holds the state after step {n}' in said, said
    assert not list((tmp_path/'run').glob('weights/*'))
    if every == 1 and what == 'picture': # taken up again without the fault
        monkeypatch.undo()
        assert run_command(redo_train.__wrapped__, [*argv, '--resume']) == 0
        assert rows(tmp_path/'run') == 40
