"The panels of `explore` and `watch` in a real browser: pages that Voila and JupyterLab serve, used by hand, without a network; and what panels are made of"
import importlib.util, io, json, os, re, shutil, signal, socket, subprocess, sys, time
from contextlib import contextmanager
from pathlib import Path
import numpy as np, pandas as pd, pytest
from PIL import Image

root = Path(__file__).resolve().parents[1]
chromium = next(filter(None, map(shutil.which, ('chromium','chromium-browser','google-chrome'))), None)
chromedriver = shutil.which('chromedriver')
def needs(*modules):
    "Skips a test where there is no browser, or nothing that serves it a page"
    lacks = [o for o,there in (('chromium',chromium), ('chromedriver',chromedriver)) if not there]
    lacks += [o for o in (*modules,'ipykernel','selenium') if importlib.util.find_spec(o) is None]
    why = f"no browser to test with: {', '.join(lacks)} is missing (Debian: apt-get install chromium chromium-driver; pip install {' '.join(modules)} ipykernel selenium)"
    return pytest.mark.skipif(bool(lacks), reason=why)

FLAGS = """--headless=new --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking --disable-component-update --disable-sync
    --disable-dev-shm-usage --disable-extensions --window-size=1200,800 --force-device-scale-factor=1""".split()
FLAGS.append('--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1') # no network

def free_port():
    with socket.socket() as s:
        s.bind(('127.0.0.1', 0))
        return s.getsockname()[1]

def stop(p):
    "End a process and all that it started"
    for sig in (signal.SIGTERM, signal.SIGKILL):
        try: os.killpg(p.pid, sig)
        except ProcessLookupError: pass
        try: return p.wait(10)
        except subprocess.TimeoutExpired: pass

SERVERS = dict(voila='-m voila page.ipynb --no-browser --port={} --Voila.ip=127.0.0.1 --VoilaConfiguration.show_tracebacks=True',
    lab='-m jupyterlab --no-browser --port={} --ServerApp.ip=127.0.0.1 --IdentityProvider.token= --ServerApp.allow_root=True --LabApp.extension_manager=readonly')

@contextmanager
def served(folder, code, by='voila'):
    "Address of a server for a notebook of one cell"
    cell = dict(cell_type='code', id='one', metadata={}, source=code, execution_count=None, outputs=[])
    spec = dict(display_name='Python 3', language='python', name='python3')
    (folder/'page.ipynb').write_text(json.dumps(dict(cells=[cell], metadata=dict(kernelspec=spec), nbformat=4, nbformat_minor=5)))
    env = os.environ | dict(PYTHONPATH=str(root), OMP_NUM_THREADS='1', PYTHONWARNINGS='ignore', IPYTHONDIR=str(folder/'ipython'), HF_HUB_OFFLINE='1',
        **{f'JUPYTER_{o.upper()}_DIR': str(folder/o) for o in ('config','data','runtime')})
    port,log = free_port(),folder/f'{by}.log'
    argv = [sys.executable, *SERVERS[by].format(port).split()]
    with log.open('wb') as out: p = subprocess.Popen(argv, cwd=folder, env=env, stdout=out, stderr=out, stdin=subprocess.DEVNULL, start_new_session=True)
    try:
        end = time.monotonic()+60
        while True:
            try: socket.create_connection(('127.0.0.1', port), 1).close(); break
            except OSError:
                assert p.poll() is None and time.monotonic() < end, log.read_text(errors='replace')
                time.sleep(.2)
        yield f'http://127.0.0.1:{port}/'
    finally: stop(p)

@contextmanager
def browser(folder):
    "Chromium with a profile of its own"
    from selenium import webdriver
    opts = webdriver.ChromeOptions()
    opts.binary_location,opts.page_load_strategy = chromium,'none'
    for o in (*FLAGS, f"--user-data-dir={folder/'profile'}"): opts.add_argument(o)
    driver = webdriver.Chrome(options=opts, service=webdriver.ChromeService(chromedriver, log_output=str(folder/'chromedriver.log')))
    driver.set_page_load_timeout(60)
    try: yield driver
    finally: driver.quit()

@contextmanager
def page(folder, code):
    "A browser that shows what some code displays, once it does"
    with served(folder, code) as url, browser(folder) as driver:
        driver.get(url)
        try: yield driver
        finally: keep_picture(driver, folder)

@contextmanager
def notebook(folder, code):
    "A browser that shows a notebook in JupyterLab, whose cell was run by its keys"
    from selenium.webdriver.common.keys import Keys
    with served(folder, code, 'lab') as url, browser(folder) as driver:
        driver.get(url+'doc/tree/page.ipynb')
        try:
            until('a kernel', lambda: find(driver, '.jp-Notebook-ExecutionIndicator[data-status=idle]'), 120)
            cell = until('the cell', lambda: find(driver, '.jp-CodeCell .cm-content'))
            def runs():
                if text(driver, '.jp-InputPrompt') == '[ ]:':
                    cell.click()
                    cell.send_keys(Keys.CONTROL+Keys.ENTER)
                    time.sleep(1)
                return text(driver, '.jp-InputPrompt') in ('[*]:','[1]:')
            until('the cell to run', runs)
            yield driver
        finally: keep_picture(driver, folder)

def keep_picture(driver, folder):
    "Screenshot, where REDO_SCREENSHOTS says or beside the rest"
    to = Path(os.environ.get('REDO_SCREENSHOTS', folder))
    to.mkdir(parents=True, exist_ok=True)
    driver.save_screenshot(str(to/f'{folder.name}.png'))

def until(what, f, seconds=60):
    "What `f` gives, once that is true"
    end = time.monotonic()+seconds
    while not (res := f()):
        assert time.monotonic() < end, f'{what}: not within {seconds} s'
        time.sleep(.1)
    return res

def find(driver, css):
    "The one element; None while it is not shown"
    from selenium.webdriver.common.by import By
    found = [o for o in driver.find_elements(By.CSS_SELECTOR, css) if o.is_displayed()]
    return found[0] if found else None

def pixels(driver, view):
    "What is seen of a view"
    e = find(driver, f'.redo-{view}')
    if e is None or not driver.execute_script('return arguments[0].complete && arguments[0].naturalWidth > 0', e): return None
    return np.asarray(Image.open(io.BytesIO(e.screenshot_as_png)).convert('RGB')).astype(int)

def differ(a, b): return a.shape != b.shape or (abs(a-b).max(-1) > 30).mean() > .005

FILE_INPUT = """const click = HTMLInputElement.prototype.click;
HTMLInputElement.prototype.click = function() { if (this.type == 'file') document.body.append(this); else click.call(this) }"""

def upload(driver, file):
    "Press the button by key, and choose a file; there is no dialog, since nobody would answer it"
    from selenium.webdriver.common.by import By
    from selenium.webdriver.common.keys import Keys
    driver.execute_script(FILE_INPUT)
    find(driver, '.redo-upload').send_keys(Keys.ENTER)
    until('the file input', lambda: driver.find_elements(By.CSS_SELECTOR, 'input[type=file]'))[-1].send_keys(str(file))

def text(driver, css):
    e = find(driver, css)
    return e.text if e else ''

@needs('voila')
def test_upload_and_threshold(tmp_path):
    "A photograph is uploaded, the slider moved by keys: the masks that are seen change, the photograph does not"
    from selenium.webdriver.common.keys import Keys
    from redo.use.segment import example_picture
    flower = example_picture('flower')[0]
    code = f"from redo.use.explore import explore\nexplore('flowers', {str(example_picture('china')[0])!r}, folder={str(tmp_path/'explored')!r}, device='cpu')"
    with page(tmp_path, code) as d:
        until('the panel', lambda: pixels(d, 'overlay') is not None, 150)
        assert 'china.jpg' in text(d, '.redo-message')
        first = pixels(d, 'picture')
        upload(d, flower)
        until('the upload', lambda: 'flower.jpg, 640 x 427' in text(d, '.redo-message'))
        until('its picture', lambda: differ(pixels(d, 'picture'), first))
        views = ('picture','soft','mask','overlay','cutout')
        was = {k: pixels(d, k) for k in views}
        handle = find(d, '.redo-threshold .noUi-handle')
        for _ in range(20): handle.send_keys(Keys.ARROW_RIGHT)
        until('the threshold', lambda: text(d, '.redo-threshold .widget-readout') == '0.90')
        until('the mask', lambda: differ(pixels(d, 'mask'), was['mask']))
        time.sleep(1) # for what came last
        now = {k: pixels(d, k) for k in views}
        assert [k for k in views if differ(now[k], was[k])] == ['soft','mask','overlay','cutout']
        (tmp_path/'notes.txt').write_text('milk, bread')
        upload(d, tmp_path/'notes.txt')
        until('the complaint', lambda: "'notes.txt' is no picture that can be read" in text(d, '.redo-message'))
        assert not differ(pixels(d, 'mask'), now['mask'])

@needs('jupyterlab')
@pytest.mark.parametrize('model', ['flowers','digits'])
def test_jupyterlab(tmp_path, model):
    "The same panel in JupyterLab, where a cell displays it: moved by keys, pixels change"
    from selenium.webdriver.common.keys import Keys
    from redo.use.segment import example_picture
    images = f"{str(example_picture('flower')[0])!r}" if model == 'flowers' else "make_digits(1, 64, split='test')[0]"
    code = f"from redo.use.explore import explore\nfrom redo.data.toy import make_digits\nexplore({model!r}, {images}, folder={str(tmp_path/'explored')!r}, device='cpu')"
    with notebook(tmp_path, code) as d:
        until('the panel', lambda: pixels(d, 'overlay') is not None, 150)
        was = {k: pixels(d, k) for k in ('picture','mask')}
        handle = find(d, '.redo-threshold .noUi-handle')
        for _ in range(20): handle.send_keys(Keys.ARROW_RIGHT)
        until('the threshold', lambda: text(d, '.redo-threshold .widget-readout') == '0.90')
        until('the mask', lambda: differ(pixels(d, 'mask'), was['mask']))
        assert not differ(pixels(d, 'picture'), was['picture'])
        if model == 'digits':
            before = until('the painting', lambda: pixels(d, 'redrawn') is not None) and pixels(d, 'redrawn')
            find(d, '.redo-texture').send_keys(Keys.ENTER)
            until('a new texture', lambda: differ(pixels(d, 'redrawn'), before))

def parts(w):
    "A widget and all that it is made of"
    own = [getattr(w, o) for o in ('layout','style') if getattr(w, o, None) is not None]
    return [w, *own, *(o for c in getattr(w, 'children', ()) for o in parts(c))]

def test_core_widgets(tmp_path):
    "Panels have nothing but ipywidgets' own widgets, no scripts and no comm of their own: so they are the same in VS Code and wherever else those are shown"
    import ipywidgets as W
    from redo.core import model_class
    from redo.data.toy import make_digits
    from redo.train.live import RunWatch
    from redo.use.explore import explore
    painter = explore(model_class('redo')(size=32, nf=8), make_digits(1, 32, split='test')[0], tmp_path/'<script>alert(1)</script>')
    painter.saver.click()
    for panel in (painter, RunWatch(tmp_path/'<img src=x onerror=alert(1)>')):
        every = parts(panel)
        assert len(every) > 5
        for o in every:
            assert o._model_module in ('@jupyter-widgets/base','@jupyter-widgets/controls') and o._view_module in ('@jupyter-widgets/base','@jupyter-widgets/controls',None), type(o)
            assert hasattr(W, o._model_name.removesuffix('Model')) or o._model_name.endswith('StyleModel'), o._model_name
            assert type(o).__module__.startswith(('ipywidgets.','redo.')) and not o._msg_callbacks.callbacks or isinstance(o, (W.Button,W.Image)), type(o)
            if isinstance(o, W.HTML): assert not re.search(r'<\s*[a-z/]', o.value), o.value
        own = [o for o in every if type(o).__module__.startswith('redo.')]
        assert own == [panel] and not set(panel.keys) - set(W.VBox().keys) # nothing of its own is sent

@needs('voila')
def test_watch(tmp_path):
    "A run that is written to while its page is open: the line, the curves and the preview that are seen follow; the button stops that"
    from selenium.webdriver.common.keys import Keys
    run = tmp_path/'run'
    with page(tmp_path, f"from redo.train.live import watch\nwatch({str(run)!r}, every=.3)") as d:
        until('the panel', lambda: 'nothing yet' in text(d, '.redo-line'), 150)
        write_run(run, 30, 'red')
        until('the first validation', lambda: 'step 30 of 90, iou_set 0.300' in text(d, '.redo-line'))
        until('its preview', lambda: (p := pixels(d, 'preview')) is not None and p[20,20].tolist() == [255,0,0])
        first = until('its curves', lambda: pixels(d, 'curves') is not None) and pixels(d, 'curves')
        write_run(run, 60, 'blue')
        until('the next preview', lambda: pixels(d, 'preview')[20,20].tolist() == [0,0,255])
        until('other curves', lambda: differ(pixels(d, 'curves'), first))
        find(d, '.redo-stop').send_keys(Keys.ENTER)
        until('the stop', lambda: text(d, '.redo-stop') == 'Go on')
        (run/'summary.json').write_text(json.dumps(dict(status='finished', steps=90)))
        time.sleep(1)
        assert 'step 60' in text(d, '.redo-line')
        find(d, '.redo-stop').send_keys(Keys.ENTER)
        until('the end', lambda: 'finished: 90 steps' in text(d, '.redo-line'))

def write_run(folder, step, color):
    "What a run of 90 steps has written after its validation at `step`"
    (folder/'previews').mkdir(parents=True, exist_ok=True)
    (folder/'run.json').write_text(json.dumps(dict(recipe=dict(train=dict(steps=90)))))
    Image.new('RGB', (64,64), color).save(folder/'previews'/f'preview_{step:06d}.png')
    for name,df in dict(losses=pd.DataFrame(dict(step=range(step), gen_loss=1.)), history=pd.DataFrame(dict(step=range(30, step+1, 30), iou_set=.3))).items():
        df.to_csv(folder/f'.{name}', index=False)
        os.replace(folder/f'.{name}', folder/f'{name}.csv')
