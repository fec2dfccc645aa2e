"Grids as processes: what ends them, that two do not do the same, and that the folder one works in has no say"
import json, os, shutil, signal, subprocess, time
from contextlib import suppress
from pathlib import Path
import numpy as np, pytest
from PIL import Image

text = '''
data: {pics: {size: 32}}
base: {recipe: paper, steps: 30, bs: 2, nf: 4, nf_mask: 4, nf_disc: 4, save_every: 0, device: cpu}
settings: {a: , b: {w_z: 1}}
'''
tiny = dict(spec='digits', size=32, recipe='paper', steps=6, bs=2, nf=4, nf_mask=4, nf_disc=4, device='cpu')
command = 'import sys; from redo.cli import redo_experiment; sys.exit(redo_experiment())'

def until(cond, seconds=300):
    "Wait for a condition"
    end = time.monotonic()+seconds
    while not cond():
        if time.monotonic() > end: raise TimeoutError
        time.sleep(.005)

def alive(pid):
    "Is there such a process, not yet dead?"
    try: return Path(f'/proc/{pid}/stat').read_text().rpartition(')')[2].split()[0] not in 'ZX'
    except OSError: return False

def children(pid): return [int(o) for o in Path(f'/proc/{pid}/task/{pid}/children').read_text().split()]

def pictures(folder):
    "A few pictures with masks: a square on a background"
    rng = np.random.default_rng(0)
    for o in ('images','masks'): (folder/o).mkdir(parents=True)
    for i in range(16):
        x,y = rng.integers(4, 16, 2)
        mask = np.zeros((32,32), 'uint8')
        mask[y:y+12,x:x+12] = 255
        Image.fromarray(mask).save(folder/'masks'/f'{i}.png')
        Image.fromarray((rng.integers(0, 99, (32,32,3)) + mask[...,None]//2).astype('uint8')).save(folder/'images'/f'{i}.png')

def bits(folder): return {o: (folder/'my/pics'/o).read_bytes() for r in 'ab' for o in (f'{r}-0/losses.csv', f'{r}-0/weights/model.safetensors')}

@pytest.fixture(scope='module')
def undisturbed(tmp_path_factory):
    "A grid of four runs, in one process from start to end, and the folder that it is in"
    import torch
    from redo.study.engine import run_experiment
    torch.set_num_threads(1)
    at = tmp_path_factory.mktemp('undisturbed')
    (at/'my.yml').write_text(text+'seeds: 2\n'), pictures(at/'pics')
    was = os.getcwd()
    os.chdir(at)
    try: run_experiment('my.yml', 'whole', 'whole-results', progress=False)
    finally: os.chdir(was)
    return at

@pytest.mark.skipif(not Path('/proc/self/task').exists(), reason='looks into /proc')
@pytest.mark.parametrize('jobs', [pytest.param(1, marks=pytest.mark.skipif(os.environ.get('REDO_SLOW') != '1', reason='REDO_SLOW=1 runs it; the one with two jobs always runs')), 2])
def test_terminated(tmp_path, undisturbed, python, monkeypatch, jobs):
    "A background job of a script, where Ctrl-C is ignored, ends on SIGTERM, and goes on to the same figures; meanwhile no other process runs the grid"
    from redo.core import RedoError
    from redo.study.engine import run_experiment
    (tmp_path/'my.yml').write_text(text), pictures(tmp_path/'pics')
    monkeypatch.chdir(tmp_path)
    go = lambda folder: run_experiment('my.yml', folder, f'{folder}-results', progress=False)
    log,runs = tmp_path/'log',tmp_path/'cut/my/pics'
    p = python(command, 'my.yml', '--jobs', jobs, '--folder', 'cut', '--results', 'cut-results', out=log, ignore=[signal.SIGINT])
    workers = []
    try:
        until(lambda: all((runs/f'{o}-0/checkpoint.pth').exists() for o in 'ab'[:jobs]) or p.poll() is not None)
        assert p.poll() is None, log.read_text()
        workers = children(p.pid)
        with pytest.raises(RedoError, match='cut/my is in use by another process'): go('cut')
        assert p.poll() is None and len(workers) >= (jobs > 1)*jobs
        p.terminate()
        assert p.wait(30) == 130, log.read_text()
        assert 'the same command goes on with it' in log.read_text() and 'Traceback' not in log.read_text(), log.read_text()
        until(lambda: not any(map(alive, workers)), 10)
    finally:
        for o in (p.pid, *workers):
            with suppress(ProcessLookupError): os.kill(o, signal.SIGKILL) if o != p.pid or p.poll() is None else None
        p.wait()
    assert not (runs/'b-0/summary.json').exists()
    df = go('cut')
    assert list(df.run) == ['a','b'] and df.id.nunique() == 2 and (df.steps == 30).all()
    assert bits(tmp_path/'cut') == bits(undisturbed/'whole')

@pytest.fixture
def handlers():
    "Puts back what SIGINT and SIGTERM do"
    old = {o: signal.getsignal(o) for o in (signal.SIGINT, signal.SIGTERM)}
    yield
    for k,o in old.items(): signal.signal(k, o)

@pytest.mark.parametrize('do', [signal.SIG_IGN, signal.SIG_DFL, signal.default_int_handler])
def test_sigterm(handlers, do):
    "SIGTERM stops whatever Ctrl-C does outside"
    from redo.study.engine import sigterm_as_ctrl_c
    signal.signal(signal.SIGINT, do)
    was = signal.getsignal(signal.SIGTERM)
    with pytest.raises(KeyboardInterrupt), sigterm_as_ctrl_c(): signal.raise_signal(signal.SIGTERM)
    assert signal.getsignal(signal.SIGINT) == do and signal.getsignal(signal.SIGTERM) == was

def test_sigterm_in_training(handlers, tmp_path):
    "In training, SIGTERM ends after the step, with a checkpoint; a run that failed leaves nothing of this behind"
    from fastai.basics import Callback
    from redo.study.run import last_checkpoint
    from redo.study.engine import run_one
    from redo.study.grid import Run
    class At(Callback):
        def __init__(self, do): self.do = do
        def before_batch(self):
            if self.training and self.model.step == 2: self.do()
    def fail(): raise OSError('no disk')
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    assert 'no disk' in run_one(Run('a', 0, tiny|dict(cbs=[At(fail)]), tmp_path/'a'), tmp_path/'r.jsonl')
    assert signal.getsignal(signal.SIGINT) == signal.SIG_IGN
    with pytest.raises(KeyboardInterrupt): run_one(Run('b', 0, tiny|dict(cbs=[At(lambda: signal.raise_signal(signal.SIGTERM))]), tmp_path/'b'), tmp_path/'r.jsonl')
    assert signal.getsignal(signal.SIGINT) == signal.SIG_IGN
    assert 'after step 3' in last_checkpoint(tmp_path/'b')

@pytest.mark.skipif(not shutil.which('git'), reason='needs git')
def test_hostile_folder(tmp_path, monkeypatch):
    "The repository one works in runs nothing, and is not taken for that of the code"
    from redo.study.results import git_version
    script,ran,repo = tmp_path/'run.sh',tmp_path/'ran',tmp_path/'repo'
    script.write_text(f'#!/bin/sh\ntouch {ran}\n'), script.chmod(0o755)
    git = lambda *a: subprocess.run(['git','-c','user.name=a','-c','user.email=a@b.c','-C',repo,*a], check=True, capture_output=True, text=True).stdout.strip()
    repo.mkdir(), git('init'), git('commit','--allow-empty','-m','data'), git('config','core.fsmonitor',str(script))
    commit = git('rev-parse','HEAD')
    ours = git_version()
    monkeypatch.chdir(repo)
    for k,v in (('GIT_DIR',repo/'.git'), ('GIT_WORK_TREE',repo), ('GIT_EXTERNAL_DIFF',script)): monkeypatch.setenv(k, str(v))
    assert git_version() == ours and not commit.startswith((ours or '-').removesuffix('-dirty'))
    assert not ran.exists()
    for k in ('GIT_DIR','GIT_WORK_TREE'): monkeypatch.delenv(k)
    git('status')
    assert ran.exists() # so git itself would have

def lines(file): return [json.loads(o) for o in Path(file).read_text().splitlines()]

def one_each(results, whole, runs):
    "Every run has one line and one curve, and ended with the bits of an undisturbed one"
    for o in ('my.jsonl','my-curves.jsonl'):
        ids = [r['id'] for r in lines(results/o)]
        assert len(ids) == len(set(ids)) == 4, o
    for r in ('a-0','b-0','a-1','b-1'):
        for o in ('losses.csv','weights/model.safetensors'): assert (runs/r/o).read_bytes() == (whole/r/o).read_bytes(), (r, o)

def kill_one(runs, engine, log, tree):
    "SIGKILL the process that is in the middle of a run; its id"
    def at_work(): return [o for o in runs.glob('*/checkpoint.pth') if not (o.parent/'summary.json').exists()]
    def holder(run): # who has the lock of its folder
        node = os.stat(run/'.redo.lock').st_ino
        for o in tree():
            with suppress(OSError):
                for fd in Path(f'/proc/{o}/fd').iterdir():
                    with suppress(OSError):
                        if os.stat(fd).st_ino == node and fd.exists(): return o
    found = []
    def look():
        assert engine.poll() is None, log.read_text()
        found.extend((o,h) for run in at_work() if (o := run.parent) and (h := holder(o)))
        return found
    until(look, 120)
    os.kill(found[0][1], signal.SIGKILL)
    return found[0]

@pytest.fixture
def start(python):
    "The command in a process of its own; also its log"
    def _start(at, *argv):
        log = at/f'log-{time.time_ns()}'
        return python(command, 'my.yml', *argv, out=log, cwd=at, env=dict(OMP_NUM_THREADS='1')),log
    return _start

def tree(pid): # With all that come from it
    res = [pid]
    for o in res:
        with suppress(OSError): res.extend(children(o))
    return res

@pytest.mark.skipif(not Path('/proc/self/task').exists(), reason='looks into /proc')
@pytest.mark.skipif(os.environ.get('REDO_SLOW') != '1', reason='REDO_SLOW=1 runs it; the one with Dask always runs')
def test_killed_worker(undisturbed, start):
    "A process of two is killed in the middle of a run: the grid ends all the same, with every run once"
    runs = undisturbed/'cut/my/pics'
    p,log = start(undisturbed, '--jobs', 2, '--folder', 'cut', '--results', 'cut-results')
    try:
        kill_one(runs, p, log, lambda: set(tree(p.pid))-{p.pid})
        assert p.wait(120) == 0, log.read_text()
    finally:
        for o in tree(p.pid):
            with suppress(ProcessLookupError): os.kill(o, signal.SIGKILL)
        p.wait()
    assert log.read_text().count(': done') == 4 and 'Traceback' not in log.read_text(), log.read_text()
    one_each(undisturbed/'cut-results', undisturbed/'whole/my/pics', runs)
    assert any('resumed' in o for o in lines(undisturbed/'cut-results/my.jsonl')) and all(o['threads'] == 1 for o in lines(undisturbed/'cut-results/my.jsonl'))

@pytest.fixture(scope='module')
def cluster():
    "Two workers, a process each, forked off one that has imported what they need"
    distributed,dask = pytest.importorskip('distributed'),pytest.importorskip('dask')
    env = dict(os.environ, PYTHONPATH=str(Path(__file__).resolve().parents[1]), PYTHONWARNINGS='ignore', OMP_NUM_THREADS='1')
    with pytest.MonkeyPatch.context() as m, dask.config.set({'distributed.worker.multiprocessing-method': 'forkserver'}):
        for k,v in env.items(): m.setenv(k, v)
        distributed.utils.get_mp_context().set_forkserver_preload(['distributed','redo.study.engine','redo.study.run','redo.study.report'])
        with distributed.LocalCluster(n_workers=2, threads_per_worker=1, processes=True, dashboard_address=None) as c: yield c

@pytest.mark.skipif(not Path('/proc/self/task').exists(), reason='looks into /proc')
def test_killed_dask_worker(undisturbed, cluster, start):
    "The same on a cluster, and stopped and started again besides"
    runs = undisturbed/'far/my/pics'
    argv = '--scheduler', cluster.scheduler_address, '--folder', 'far', '--results', 'far-results'
    pids = lambda: [o.pid for o in cluster.workers.values() if o.pid]
    p,log = start(undisturbed, *argv)
    try:
        run,_ = kill_one(runs, p, log, pids)
        until(lambda: (run/'summary.json').exists() or p.poll() is not None, 120)
        p.terminate()
        assert p.wait(60) in (0, 130), log.read_text()
        assert 'Traceback' not in log.read_text(), log.read_text()
        q,log = start(undisturbed, *argv)
        try: assert q.wait(120) == 0, log.read_text()
        finally: q.kill(), q.wait()
    finally: p.kill(), p.wait()
    one_each(undisturbed/'far-results', undisturbed/'whole/my/pics', runs)
    assert {o['command'].partition(' my.yml')[2].split()[0] for o in lines(undisturbed/'far-results/my.jsonl')} == {'--scheduler'}

def test_scheduler_that_is_none(tmp_path, monkeypatch, capfd):
    "A line says it"
    pytest.importorskip('distributed')
    from redo.cli import redo_experiment, run_command
    import redo.study.engine as engine
    monkeypatch.chdir(tmp_path)
    (tmp_path/'my.yml').write_text(text.replace('pics', 'digits'))
    for argv,why in ((['--scheduler','nope://x'], "cannot reach a scheduler at 'nope://x'"), (['--scheduler','tcp://x:1','--jobs','2'], 'leave jobs and devices out')):
        assert run_command(redo_experiment.__wrapped__, ['my.yml', *argv]) == 1
        err = capfd.readouterr().err
        assert err.count('\n') == 1 and why in err, err

def test_deadly_run(tmp_path, monkeypatch):
    "A run that takes its process down every time is named; the others are done, and nothing is started for ever"
    import redo.study.engine as engine
    def work(i, run, how): return i,os._exit(3) if run == 'deadly' else None
    monkeypatch.setattr(engine, '_numbered', work)
    ends = dict(engine._on_loky(['deadly','a','b'], 2, dict(stop=tmp_path/'stop')))
    assert ends == dict(deadly='its process died three times, the last time alone', a=None, b=None)
