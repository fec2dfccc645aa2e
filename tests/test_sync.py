"What is generated equals what the notebooks give, and the notebooks keep to the rules of CONTRIBUTING.md"
import ast, json, os, re, shutil, statistics, subprocess, sys
import pytest
from filelock import FileLock
from nbdev.doclinks import nbglob
import pages

root = pages.root
nbs = sorted(nbglob(root/'nbs', as_path=True))
numbered = [o for o in nbs if o.name[0].isdigit()]

def load(fn): return json.loads(fn.read_text(encoding='utf-8'))['cells']
def source(cell): return ''.join(cell['source'])
def exports(fn):
    "Sources of the exported cells"
    return [s for c in load(fn) if c['cell_type']=='code' and re.search(r'^#\|\s*exports?i?\b', s := source(c), re.M)]

# Generated files

@pytest.fixture(scope='module')
def copy(tmp_path_factory):
    "A copy of the project, exported and cleaned from nothing but the notebooks; made once, by whichever worker asks first"
    base = tmp_path_factory.getbasetemp()
    dst = (base.parent if os.environ.get('PYTEST_XDIST_WORKER') else base)/'copy'
    with FileLock(f'{dst}.lock'):
        if dst.exists(): return dst
        new = tmp_path_factory.mktemp('new')/'copy'
        shutil.copytree(root/'nbs', new/'nbs', ignore=shutil.ignore_patterns('.*','models'))
        (new/'redo').mkdir()
        for f in ('pyproject.toml','settings.ini','setup.py','_quarto.yml','README.md','redo/__init__.py'): shutil.copy(root/f, new/f)
        code = 'from nbdev.doclinks import nbdev_export as e; from nbdev.clean import nbdev_clean as c; e.__wrapped__(); c.__wrapped__()'
        subprocess.run([sys.executable, '-c', code], cwd=new, check=True)
        return new.rename(dst)

def files(folder, pattern): return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob(pattern) if '.ipynb_checkpoints' not in p.parts}
def differing(a, b): return sorted(k for k in a.keys()|b.keys() if a.get(k) != b.get(k))

def test_modules_are_exported(copy):
    "redo/ is what nbdev-export gives, no module more or less"
    bad = differing(files(root/'redo', '*.py'), files(copy/'redo', '*.py'))
    assert not bad, f'run nbdev-export: {bad}'
    assert (copy/'pyproject.toml').read_bytes() == (root/'pyproject.toml').read_bytes()

def test_notebooks_are_clean(copy):
    "nbdev-clean has nothing to do"
    bad = differing({o.relative_to(root/'nbs').as_posix(): o.read_bytes() for o in nbs}, files(copy/'nbs', '*.ipynb'))
    assert not bad, f'run nbdev-clean: {bad}'

def test_readme(tmp_path):
    "README.md is what nbs/index.ipynb gives, and every picture in it is there"
    subprocess.run([sys.executable, root/'.ci/pages.py', 'readme', tmp_path/'README.md'], check=True)
    text = (root/'README.md').read_text(encoding='utf-8')
    assert text == (tmp_path/'README.md').read_text(encoding='utf-8'), 'run python .ci/pages.py readme'
    pictures = re.findall(r'!\[[^\]]*\]\(([^)]+)\)', text)
    assert pictures and all((root/p).is_file() for p in pictures), pictures

# Rules

def order(fn): return re.match(r'(\d+)([a-z]?)_', fn.name).groups()
def module(fn): return next((f'redo.{m[1]}' for s in map(source, load(fn)) if (m := re.search(r'^#\|\s*default_exp\s+(\S+)', s, re.M))), None)

def imported(src, mod):
    "Dotted names of what exported source imports from redo"
    for n in ast.walk(ast.parse(src)):
        if isinstance(n, ast.Import): yield from (a.name for a in n.names if a.name.split('.')[0]=='redo')
        if isinstance(n, ast.ImportFrom):
            base = '.'.join([*(mod.split('.')[:-n.level] if n.level else []), *([n.module] if n.module else [])])
            if base.split('.')[0]=='redo': yield from (f'{base}.{a.name}' for a in n.names)

def test_imports_point_down():
    "A module imports only modules of lower-numbered notebooks"
    where = {module(o): o for o in numbered if module(o)}
    assert len(where) > 10 and len(where) == sum(module(o) is not None for o in numbered)
    bad = []
    for mod,fn in where.items():
        for name in {o for s in exports(fn) for o in imported(s, mod)} - {'redo.__version__'}:
            target = next((o for o in (name, name.rpartition('.')[0]) if o in where), None)
            if target is None or order(where[target]) >= order(fn): bad.append(f'{fn.name} imports {name}')
    assert not bad, bad

def code_lines(src):
    "Lines of code: without blank lines, comments, docstrings, and the parameters of a signature that have a line each for their docments"
    skip = set()
    for n in ast.walk(ast.parse(src)):
        if isinstance(n, (ast.FunctionDef, ast.ClassDef)) and ast.get_docstring(n): skip |= {*range(n.body[0].lineno, n.body[0].end_lineno+1)}
        if isinstance(n, ast.FunctionDef): skip |= {*range(n.lineno+1, n.body[0].lineno)}
    return sum(bool(l.strip()) and not l.strip().startswith('#') and i not in skip for i,l in enumerate(src.splitlines(), 1))

def test_export_cells_are_short():
    "No exported cell above 60 lines; at most 15 lines of code in the mean of a notebook"
    bad = []
    for fn in nbs:
        cells = exports(fn)
        if not cells: continue
        longest,mean = max(len(o.splitlines()) for o in cells),statistics.mean(map(code_lines, cells))
        if longest > 60 or mean > 15: bad.append(f'{fn.name}: longest {longest}, mean {mean:.1f}')
    assert not bad, bad

def test_notebooks_are_small():
    "At most 350 KB each"
    big = {o.name: f'{o.stat().st_size/1024:.0f} KB' for o in nbs if o.stat().st_size > 350*1024}
    assert not big, big

def test_saved_outputs():
    "No error among the saved outputs"
    bad = [o.name for o in nbs for c in load(o) if any(x['output_type']=='error' for x in c.get('outputs', []))]
    assert not bad, bad

machine_path = re.compile(r'(?<![\w.~/-])/(?:work|root|home|opt|tmp|Users)(?![\w-])')

def texts():
    "(name, text) of everything written: notebooks cell by cell without their pictures, other text files whole"
    for fn in nbs:
        for c in load(fn):
            for o in c.get('outputs', []):
                if 'data' in o: o['data'] = {k: v for k,v in o['data'].items() if not k.startswith('image/')}
            yield fn.name, re.sub(r'base64,[\w+/=]+', '', '\n'.join(strings(c)))
    for d in ('.ci','.github','redo','tests','results','.'):
        for p in ((root/d).glob('*') if d=='.' else (root/d).rglob('*')):
            if p.is_file() and p.suffix in ('','.py','.md','.toml','.ini','.cff','.yml','.yaml','.jsonl','.json') and '__pycache__' not in p.parts: yield p.name, p.read_text(encoding='utf-8')

def strings(o):
    "All strings of nested lists and dictionaries; lists of lines joined"
    if isinstance(o, str): yield o
    elif isinstance(o, list) and all(isinstance(x, str) for x in o): yield ''.join(o)
    elif isinstance(o, (list,dict)):
        for x in (o.values() if isinstance(o, dict) else o): yield from strings(x)

def test_no_machine_paths():
    "Neither sources nor saved outputs name a place on one machine"
    bad = {f'{name}: {m[0]}{text[m.end():m.end()+30]!r}' for name,text in texts() for m in machine_path.finditer(text)}
    assert not bad, bad

def test_contributing_lists_every_notebook():
    "The map of the house in CONTRIBUTING.md is complete"
    text = (root/'CONTRIBUTING.md').read_text(encoding='utf-8')
    missing = [o.stem for o in numbered if f'`{o.stem}`' not in text]
    assert not missing, missing
