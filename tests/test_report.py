"Reports: one file that loads nothing and escapes what others have named; whatever a folder holds, there is a page; a run never fails for it"
import json, os, re, shutil, sys, time, warnings
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote_to_bytes
import pytest
from hypothesis import HealthCheck, given, settings, strategies as st
from PIL import Image
from redo.cli import redo_report
from redo.command import run_command
from redo.core import RedoError
from redo.data.toy import make_digits
from redo.files import LOCK
from redo import page
from redo.study import report
from redo.study.engine import run_experiment
from redo.study.report import write_report
from redo.study.run import RUN_FILES, leave_report, train_run
from redo.study.teach import teach_run

hostile = ['<script>alert(1)</script>', '"><img src=x onerror=alert(1)>', "' onmouseover='x", '</style><h1>', '</title><b>', '{{ 7*7 }}{% raw %}', '$\\frac{$', '_hidden', 'línea\nñ 漢字 🙂',
    'javascript:alert(1)', '&lt;b&gt;&#0;', '--><svg/onload=x>', ']]><x/>', '\x00\x07', '\udce4\udcff', 'https://example.com/a.png', '%s%n', '']

tags = set('html head meta title style body header h1 h2 p ul li section div table thead tbody tr th td figure figcaption img pre details summary a script '
    'svg defs g path text use clippath rect line tspan'.split())

class Seen(HTMLParser):
    "Elements of a page, with their attributes"
    def __init__(self, text):
        super().__init__()
        self.all,self.text = [],''
        self.feed(text), self.close()
    def handle_starttag(self, tag, attrs): self.all.append((tag,dict(attrs)))
    def handle_data(self, data): self.text += data

def check_page(file):
    "Only elements of the template, nothing that acts, nothing from elsewhere"
    text = Path(file).read_bytes().decode('utf-8')
    seen = Seen(text)
    assert {t for t,_ in seen.all} <= tags, {t for t,_ in seen.all}-tags
    assert sum(t == 'script' for t,_ in seen.all) == text.count(page._SCRIPT) <= 1
    assert sum(t == 'style' for t,_ in seen.all) == 1+sum(t == 'svg' for t,_ in seen.all) # its own, and matplotlib's in every panel
    for t,a in seen.all:
        assert not [k for k in a if k.startswith('on')], (t, a)
        for k in ('src','href','xlink:href','action','data','srcset','poster'):
            v = a.get(k, '')
            if t == 'img': assert k != 'src' or v.startswith('data:image/jpeg;base64,')
            elif v: assert v.startswith('#') or t == 'a' and k == 'href' and re.fullmatch(r'[\w./~%-]+', v) and v[:1] != '/', (t, k, v)
        assert 'url(' not in re.sub(r'url\(#\w+\)', '', ' '.join(filter(None, a.values()))), a
    assert not re.search(r'@import|url\((?!#)', text.split('<svg')[0])
    return seen

def write_run(folder, name='one', options=None, score='gen_loss', summary=None, **more):
    "The folder of a run by hand"
    folder.mkdir(parents=True)
    told = dict(spec=name, model='redo_robust', size=32, n_regions=2, seed=0, recipe=dict(name=name, model={'nf': 4, **(options or {})}, train=dict(steps=20, lr={'all': .1})),
        told=dict(name=name), start=dict(date='2026-01-01', command=name, processor=name, versions={name: name}, has_bf16=True, threads=1), id=name) | more
    (folder/'run.json').write_text(json.dumps(told))
    (folder/'summary.json').write_text(json.dumps(dict(run=name, status='finished', failed=[], iou_set=.5, test=dict(iou_set=.4, n_images=3), seconds=60) | (summary or {})))
    cell = '"'+score.replace('"', '""')+'"'
    (folder/'history.csv').write_bytes(f'step,seconds,{cell},iou_set\n10,1,2.5,.3\n20,2,1.5,.5\n'.encode('utf-8', 'replace'))
    (folder/'losses.csv').write_bytes((f'step,{cell}\n' + '\n'.join(f'{i},{1/(i+1)}' for i in range(20))).encode('utf-8', 'replace'))
    (folder/'previews').mkdir()
    for i in (10,20): Image.new('RGB', (40,20), (i,9,9)).save(folder/'previews'/f'preview_{i:06d}.png')
    Image.new('RGB', (40,20)).save(folder/'masks.png')

@pytest.fixture(scope='module')
def trained(tmp_path_factory):
    "Two small runs, and where they are"
    d = tmp_path_factory.mktemp('trained')
    with pytest.MonkeyPatch.context() as m:
        m.setenv('REDO_CACHE', str(d/'.cache'))
        for i in range(2): train_run('digits', d/f'run-{i}', size=32, nf=4, nf_mask=8, nf_disc=4, bs=8, steps=4, w_z=1.+i, seed=i, device='cpu', progress=False)
    return d

def test_run(trained):
    "A run leaves a whole page about itself, and its command, options and scores stand there"
    file = trained/'run-0/report.html'
    begin = time.process_time()
    leave_report(trained/'run-0')
    assert time.process_time()-begin < 1
    seen = check_page(file)
    s = json.loads((trained/'run-0/summary.json').read_text())
    for o in ('iou_set','iou_per_image', f"{s['iou_set']:.4f}", f"{s['test']['iou_set']:.4f}", 'one assignment of regions', 'the better assignment for every picture', s['id'], s['processor'],
        s['simd'], 'bfloat16', f"torch {s['versions']['torch']}", 'model.w_z', 'finished'): assert o in seen.text, o
    pictures = [a for t,a in seen.all if t == 'img']
    assert len(pictures) > 2 and file.stat().st_size < 3e6 and sum(t == 'svg' for t,_ in seen.all) == 2
    assert not [o for o in (trained/'run-0').glob('.*') if o.name != LOCK]
    assert any(re.fullmatch(o, 'report.html') for o in RUN_FILES[''])

def test_several(trained, tmp_path, monkeypatch):
    "Several runs: curves over each other, and only the options that differ"
    monkeypatch.chdir(trained)
    file = write_report(['run-0','run-1'], tmp_path/'both.html')
    seen = check_page(file)
    rows = seen.text[seen.text.index('Options that differ'):]
    assert 'seed' in rows and 'model.w_z' in rows and 'model.nf' not in rows
    assert file.read_text().count('alt="run-') == 2 and [a['href'] for t,a in seen.all if t == 'a'] # from where the page is
    for t,a in seen.all:
        if t == 'a': assert (tmp_path/a['href']).resolve().exists(), a
    assert write_report('.').resolve() == (trained/'report.html').resolve() and 'mean ± standard deviation' in (trained/'report.html').read_text()

@pytest.mark.parametrize('name', [' '.join(hostile), *hostile[:3], hostile[6], '_hidden', '\udce4', ''], ids=lambda o: ascii(o)[:12])
def test_names(tmp_path, name):
    "Names of data, settings, losses, options, commands and folders are text, whatever they are"
    loss = re.sub(r'[\x00\r\n]', ' ', name)+'loss'
    more = dict(summary=dict(recipe_name=name, grid=name, data=name, collapses=[{'step': 1, 'action': name, name: name}], failed=[name], parts={name: {name: .5, 'iou_set': .1}}))
    for i in range(2): write_run(tmp_path/f'runs/r{i}', name, {name: name, 'w': i}, loss, **more)
    check_page(write_report(tmp_path/'runs/r0'))
    check_page(write_report(tmp_path/'runs'))
    (tmp_path/'runs/r1/run.json').write_text('{"command": "redo-teach", "spec": '+json.dumps(name)+', "teacher": '+json.dumps(name)+'}')
    (tmp_path/'runs/r1/summary.json').write_text(json.dumps(dict(scores={name: {name: dict(iou_set=1), 'iou_set': .5}}, teacher_why=name)))
    (tmp_path/'runs/r1/choice.json').write_text(json.dumps(dict(teacher_table=[{name: name}])))
    check_page(write_report(tmp_path/'runs/r1'))

@pytest.mark.parametrize('name', [''.join(o for o in hostile[:12] if '/' not in o)[:120], 'javascript:alert(1)', '\udce4\udcff'], ids=['all','url','bytes'])
def test_folders(tmp_path, name):
    "So are names of folders, in links, too"
    try: write_run(tmp_path/name/name)
    except (OSError, UnicodeError): pytest.skip('the file system does not take this name')
    check_page(write_report(tmp_path/name/name))
    shutil.copytree(tmp_path/name/name, tmp_path/name/'other')
    file = write_report([tmp_path/name/name, tmp_path/name/'other'], tmp_path/'both.html')
    links = [a['href'] for t,a in check_page(file).all if t == 'a']
    assert len(links) == 2 and all(os.path.exists(os.path.join(os.fsencode(tmp_path), unquote_to_bytes(o))) for o in links), links

values = st.recursive(st.none()|st.booleans()|st.integers()|st.floats()|st.text(max_size=8)|st.sampled_from(hostile), lambda o: st.lists(o, max_size=3)|st.dictionaries(st.text(max_size=5), o, max_size=3), max_leaves=5)
keys = st.sampled_from('spec model size seed recipe told start resumed id command versions date processor threads run status failed collapses collapsed iou_set test parts seconds '
    'scores config steps teacher_why data teacher_table n_pictures pictures has_bf16 name train.steps'.split())

@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.dictionaries(keys, values, max_size=8), st.dictionaries(keys, values, max_size=8), st.text(max_size=40), st.binary(max_size=40))
def test_any_json(tmp_path, told, summary, table, picture):
    "Whatever the files hold, there is a page"
    d = tmp_path/'runs/any'
    shutil.rmtree(tmp_path/'runs', ignore_errors=True)
    (d/'round-1').mkdir(parents=True)
    for f in (d,d/'round-1'):
        (f/'run.json').write_text(json.dumps(told))
        if summary: (f/'summary.json').write_text(json.dumps(summary))
        (f/'history.csv').write_bytes(('step,iou_set,loss\n1,2,3\n'+table).encode('utf-8', 'replace'))
        (f/'masks.png').write_bytes(picture)
    check_page(write_report(d)), check_page(write_report(d.parent))

def test_damaged(tmp_path):
    "What cannot be read is named on the page, and the rest is there"
    write_run(tmp_path/'a')
    (tmp_path/'a/summary.json').unlink()
    text = check_page(write_report(tmp_path/'a')).text
    assert 'not finished: step 20 of 20' in text and '0.5' in text and 'valid, step 20' in text
    (tmp_path/'a/run.json').write_text('{"spec": ')
    (tmp_path/'a/history.csv').write_bytes(b'\xff\xfe\x00a')
    (tmp_path/'a/losses.csv').write_text('')
    (tmp_path/'a/masks.png').write_bytes((tmp_path/'a/masks.png').read_bytes()[:60])
    os.mkfifo(tmp_path/'a/previews/preview_000001.png')
    text = check_page(write_report(tmp_path/'a')).text
    for o in ('run.json: it is no JSON','history.csv','losses.csv','masks.png: it is no whole picture','preview_000001.png: it is a pipe'): assert o in text, o
    assert str(tmp_path) not in text and 'step 10' in text

def test_no_run(tmp_path, monkeypatch, capsys):
    "What is no run, and a page that is somebody's own, in one line"
    monkeypatch.chdir(tmp_path)
    Path('pics').mkdir(); Path('pics/a.txt').touch(); write_run(Path('a')); Path('mine.html').write_text('<p>mine'); Path('dir.html').mkdir()
    def said(*args):
        monkeypatch.setattr(sys, 'argv', ['redo-report', *args])
        rc,err = run_command(redo_report.__wrapped__),capsys.readouterr().err
        return rc,err
    for args,why in {('pics',): 'pics holds no run: name the folder of a run', ('nowhere',): 'cannot read nowhere', ('a/run.json',): 'cannot read a/run.json', ('a\0',): 'cannot read',
        (): 'name the folder of a run', ('a','pics'): 'pics holds no run', ('a','--out','mine.html'): 'mine.html is no report of ours', ('a','--out','dir.html'): 'it is a folder',
        ('a','--out','a/run.json'): 'a/run.json is no report of ours', ('a','--out','a/run.json/x.html'): 'cannot'}.items():
        rc,err = said(*args)
        assert (rc, err.count('\n')) == (1, 1) and why in err and err.startswith('redo-report: '), (args, err)
    assert Path('mine.html').read_text() == '<p>mine' and not Path('report.html').exists() and said('a') == (0, '') == said('a')
    assert said('a','a/') == (0, '') and said('a', '--out', 'deep/er.html') == (0, '') and Path('deep/er.html').exists()

def test_never_fails_a_run(tmp_path, trained, monkeypatch):
    "What goes wrong in drawing is a warning in one line, and the run has ended well"
    monkeypatch.setenv('REDO_CACHE', str(trained/'.cache'))
    def broken(*args, **kwargs): raise ZeroDivisionError('no\nink')
    monkeypatch.setattr(report, 'curve_panel', broken)
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter('always')
        s = train_run('digits', tmp_path/'run', size=32, nf=4, nf_mask=8, nf_disc=4, bs=8, steps=1, device='cpu', progress=False, previews=False)
    said = [str(o.message) for o in seen if 'no report' in str(o.message)]
    assert len(said) == 1 and 'ZeroDivisionError: no ink' in said[0] and s['status'] == 'finished'
    assert not (tmp_path/'run/report.html').exists() and not [o for o in (tmp_path/'run').glob('.*') if o.name != LOCK]

def test_whole(tmp_path, monkeypatch):
    "A page is written whole or not at all"
    write_run(tmp_path/'a')
    old = write_report(tmp_path/'a').read_bytes()
    def full(*args): raise OSError(28, 'No space left on device')
    monkeypatch.setattr(os, 'replace', full)
    with pytest.raises(RedoError, match='cannot write .*No space left'): write_report(tmp_path/'a')
    assert (tmp_path/'a/report.html').read_bytes() == old and not list((tmp_path/'a').glob('.*'))

def test_same_page(tmp_path):
    "The same folder gives the same page"
    write_run(tmp_path/'a')
    assert write_report(tmp_path/'a').read_bytes() == write_report(tmp_path/'a').read_bytes()

def test_experiment(tmp_path, trained, monkeypatch):
    "A grid leaves a page with a line a setting and a link to every run; a run that fails does not keep it away"
    monkeypatch.setenv('REDO_CACHE', str(trained/'.cache'))
    from redo.study.grid import Grid
    tiny = dict(size=32, recipe='robust', nf=4, nf_mask=8, nf_disc=4, bs=8, steps=2, device='cpu')
    g = Grid('small', dict(base={}, big=dict(bs=6000)), dict(digits={}), 2, tiny)
    with pytest.raises(RedoError, match='2 of 4 runs failed'): run_experiment(g, tmp_path/'runs', tmp_path/'results', progress=False)
    seen = check_page(tmp_path/'runs/small/report.html')
    assert '2 runs: 2 finished' in seen.text
    assert sorted(a['href'] for t,a in seen.all if t == 'a') == [f'digits/{o}/report.html' for o in ('base-0','base-1')]
    assert re.search(r'base\s+\d\.\d+ ± ', re.sub(r'<[^>]+>', ' ', (tmp_path/'runs/small/report.html').read_text()))

def test_teaching(tmp_path):
    "A teaching leaves a page with its rounds"
    (tmp_path/'pics').mkdir()
    for i,o in enumerate(make_digits(24, 32, seed=1)[0]): Image.fromarray(o.permute(1,2,0).numpy()).save(tmp_path/f'pics/{i}.png')
    teach_run(tmp_path/'pics', tmp_path/'taught', 32, 32, 'kmeans', 1, 2, nf_mask=8, n_res=0, bs=4, device='cpu', progress=False)
    seen = check_page(tmp_path/'taught/report.html')
    assert [a['href'] for t,a in seen.all if t == 'a'] == ['round-1/report.html']
    assert 'kmeans' in seen.text and 'refine_by' in seen.text and 'student' in seen.text and sum(t == 'img' for t,_ in seen.all) > 1

def test_not_finite(tmp_path, trained, monkeypatch):
    "A run that ends in NaN leaves a page, too"
    monkeypatch.setenv('REDO_CACHE', str(trained/'.cache'))
    from redo.train.phases import NotFinite
    from redo.models.redo import ReDO
    from fastai.basics import Callback
    class Bad(Callback):
        def before_batch(self):
            if self.training and self.iter > 0: self.learn.xb = (self.xb[0]*float('nan'),)
    with pytest.raises(NotFinite): train_run('digits', tmp_path/'run', size=32, nf=4, nf_mask=8, nf_disc=4, bs=8, steps=20, device='cpu', progress=False, previews=False, cbs=[Bad()])
    assert 'not finished' in check_page(tmp_path/'run/report.html').text
