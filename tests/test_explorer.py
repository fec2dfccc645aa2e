"The panels of `explore` and `watch` in a real browser: pages that Voila serves, used by hand, without a network"
import importlib.util, io, json, os, shutil, signal, socket, subprocess, sys, time
from contextlib import contextmanager
from pathlib import Path
import numpy as np, pandas as pd, pytest
from PIL import Image

root = Path(__file__).resolve().parents[1]
chromium = next(filter(None, map(shutil.which, ('chromium','chromium-browser','google-chrome'))), None)
chromedriver = shutil.which('chromedriver')
lacks = [o for o,there in (('chromium',chromium), ('chromedriver',chromedriver)) if not there]
lacks += [o for o in ('voila','ipykernel','selenium') if importlib.util.find_spec(o) is None]
pytestmark = pytest.mark.skipif(bool(lacks), reason=f"no browser to test with: {', '.join(lacks)} is missing (Debian: apt-get install chromium chromium-driver; "
    "pip install voila ipykernel selenium)")
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

@contextmanager
def voila(folder, code):
    "Address of a page that runs some code"
    cell = dict(cell_type='code', id='one', metadata={}, source=code, execution_count=None, outputs=[])
    spec = dict(display_name='Python 3', language='python', name='python3')
    (folder/'page.ipynb').write_text(json.dumps(dict(cells=[cell], metadata=dict(kernelspec=spec), nbformat=4, nbformat_minor=5)))
    env = os.environ | dict(PYTHONPATH=str(root), OMP_NUM_THREADS='1', PYTHONWARNINGS='ignore', IPYTHONDIR=str(folder/'ipython'), HF_HUB_OFFLINE='1',
        **{f'JUPYTER_{o.upper()}_DIR': str(folder/o) for o in ('config','data','runtime')})
    port,log = free_port(),folder/'voila.log'
    argv = [sys.executable, '-m', 'voila', 'page.ipynb', '--no-browser', f'--port={port}', '--Voila.ip=127.0.0.1', '--VoilaConfiguration.show_tracebacks=True']
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
    with voila(folder, code) as url, browser(folder) as driver:
        driver.get(url)
        try: yield driver
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
