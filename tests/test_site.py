"The site: a sidebar for readers, pages without a network, and a check that finds what is broken on them"
import re
import pytest, yaml
import pages

root = pages.root

def test_sidebar():
    "Every notebook once, in a reader's order"
    assert not pages.sidebar_faults()
    bar = pages.sidebar()
    assert [o for o,_ in bar] == ['Introduction','Tutorials','How it works','Training','Using it','Experiments','Studies','Reference']
    names = [f.stem for _,fns in bar for f in fns]
    assert names[0] == 'index' and names.index('own_photos') < names.index('30_models.redo') < names.index('54_train.learner') < names.index('01_core')

def notebook(file, title='# a page', **front):
    "A notebook of one cell"
    text = '\n'.join([title, '', '> what it is', *(['']*bool(front)), *(f'- {k}: {v}' for k,v in front.items())])
    cells = [dict(cell_type='markdown', id='a0', metadata={}, source=text)]
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(pages.nbformat.writes(pages.nbformat.from_dict(dict(cells=cells, metadata={}, nbformat=4, nbformat_minor=5))))

def test_sidebar_by_itself(tmp_path):
    "A new notebook finds its section, an ordered tutorial its place; what fits no section is told"
    for o in ('index','20_nets.new','67_use.new','experiments/new','tutorials/b'): notebook(tmp_path/f'{o}.ipynb')
    notebook(tmp_path/'tutorials/z.ipynb', order=1)
    bar = dict(pages.sidebar(nbs=tmp_path))
    assert [o.stem for o in bar['Tutorials']] == ['z','b'] and [o.stem for o in bar['Using it']] == ['67_use.new']
    notebook(tmp_path/'loose.ipynb')
    assert 'loose.ipynb is in no section of the sidebar' in pages.sidebar_faults(nbs=tmp_path)
    cfg = yaml.safe_load((root/'_quarto.yml').read_text())
    cfg['website']['sidebar']['contents'] += [{'section': 'More', 'contents': ['gone.ipynb','20_nets.new.ipynb']}, {'section': 'Bare', 'contents': []}]
    (tmp_path/'q.yml').write_text(yaml.dump(cfg))
    assert {'gone.ipynb is in the sidebar and nowhere else','20_nets.new.ipynb is in the sidebar 2 times','section Bare of the sidebar is empty'} < {*pages.sidebar_faults(tmp_path/'q.yml', tmp_path)}

text = 'word '*30
good = f'<main><h1>A</h1><h2 id="there">x</h2><p>{text}</p>%s</main>'
png = 'data:image/png;base64,iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAAAAAA6fptVAAAACklEQVR4nGNgAAAAAgABSK+kcQAAAABJRU5ErkJggg=='

@pytest.mark.parametrize('html, told', [
    (good % '<a href="b.html">b</a><a href="#there">a</a><a href="b.html#top">b</a><a href="https://a.b">c</a><img src="p.png"><img src="%s">' % png, None),
    (good % '<a href="no.html">no</a>', 'link to no.html: there is no such page'),
    (good % '<a href="../a.html">up</a>', 'link to ../a.html: there is no such page'),
    (good % '<a href="#gone">a</a>', 'link to #gone: no such heading there'),
    (good % '<a href="b.html#gone">a</a>', 'link to b.html#gone: no such heading there'),
    (good % '<img src="no.png">', 'figure no.png is missing'),
    (good % f'<img src="{png[:60]}">', f'figure {png[:60]} is damaged'),
    (good % '<div class="output_text"><pre>&lt;Figure size 640x480 with 1 Axes&gt;</pre></div>', 'a figure was not saved: <Figure size 640x480 with 1 Axes>'),
    (good % '<script src="https://cdn.example/mathjax.js"></script>', 'https://cdn.example/mathjax.js is asked of the network'),
    (good % r'<math><mi>\nosuch</mi></math>', r'equation with an unknown command: \nosuch'),
    (good % r'<p>so $\frac12$ it is</p>', r'equation as TeX: $\frac12$'),
    ('<main><h1>A</h1><p>soon</p></main>', 'the page is empty'),
    (f'<main><p>{text}</p></main>', 'the page has no title'),
], ids=lambda o: None if o is None or '<' in o else re.sub(r'\W+', '-', o)[:30])
def test_faults_are_found(tmp_path, html, told):
    "Each fault of a page is told, and only that"
    (tmp_path/'a.html').write_text(html)
    (tmp_path/'b.html').write_text(f'<main><h1 id="top">B</h1><p>{text}</p></main>')
    pages.Image.new('L', (2,2)).save(tmp_path/'p.png')
    assert pages.faults(tmp_path) == ([f'a.html: {told}'] if told else [])

def test_no_pages(tmp_path): assert pages.faults(tmp_path)

def test_equations():
    "TeX becomes MathML; what is unknown stays visible for the check"
    render = pages.Renderer(None)
    assert '<mfrac>' in render.inline_math(r'\frac12') and 'display="block"' in render.block_math('x')
    assert '\\' not in render.inline_math(r'\arg\max_k M_k') and r'\nosuch' in render.inline_math(r'\nosuch')

def test_site(tmp_path, python):
    "Every notebook becomes a page; all links, figures and equations on them are whole, and none needs the network"
    code = f'import runpy; runpy.run_path({str(root/".ci/pages.py")!r}, run_name="__main__")'
    rc = python(code, 'site', tmp_path/'site', out=tmp_path/'out.txt', err=(log := tmp_path/'err.txt'), env=dict(PYTHONWARNINGS=None)).wait(900)
    assert not rc, log.read_text()[-3000:]
    assert not (bad := pages.faults(tmp_path/'site')), '\n'.join(bad)
    there = {o.relative_to(tmp_path/'site').as_posix() for o in (tmp_path/'site').rglob('*.html')}
    assert there == {pages.page_path(f, root/'nbs') for _,fns in pages.sidebar() for f in fns}
    read = lambda o: (tmp_path/'site'/o).read_text(encoding='utf-8')
    losses,tour,home = read('losses.html'),read('tutorials/own_photos.html'),read('index.html')
    assert losses.count('<math') > 20 and 'aria-current="page">losses<' in losses and 'id="_' not in losses
    assert 'href="../models.redo.html"' in tour and 'src="images/masks.png"' in home
    assert 'href="core.html#decomposer"' in ''.join(map(read, there)), 'symbols are not linked'
