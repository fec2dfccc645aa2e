"""Notebooks to pages without Quarto: nbdev's own filters, then nbconvert

python .ci/pages.py readme [FILE]    README.md from nbs/index.ipynb
python .ci/pages.py site FOLDER      every notebook as a page, with the sidebar of _quarto.yml; no page asks the network for anything
python .ci/pages.py check FOLDER     what is wrong with such pages: links that lead nowhere, missing figures, empty pages
"""
import base64, io, os, re, shutil, sys
from collections import Counter
from functools import lru_cache
from html import escape
from pathlib import Path
from urllib.parse import unquote, urlsplit
import nbdev.processors, nbformat, yaml
from bs4 import BeautifulSoup
from fastcore.nbio import nb2str, nb_frontmatter, read_nb
from latex2mathml.converter import convert
from nbconvert import HTMLExporter, MarkdownExporter
from nbconvert.filters.highlight import Highlight2HTML, _pygments_highlight
from nbconvert.filters.markdown_mistune import IPythonRenderer, MarkdownWithMath
from nbdev.config import get_config, nbpath2html
from nbdev.doclinks import nbglob
from nbdev.process import NBProcessor
from nbdev.processors import FilterDefaults
from nbdev.readme_filter import doc_link
from PIL import Image
from pygments.formatters import HtmlFormatter

root = Path(__file__).resolve().parents[1]
# The README starts with its title, and its links are written out: looked-up links would depend on what is installed
not_in_readme = 'FrontmatterProc', 'add_show_docs', 'exec_show_docs', 'add_links'

def filtered(fn, skip=()):
    "The notebook after nbdev's filters, in nbconvert's format; cells with `echo: false` lose their source"
    os.chdir(root) # cells that run for a page may go elsewhere
    try:
        proc = NBProcessor(fn, procs=[p for p in FilterDefaults().procs() if p.__name__ not in skip], rm_directives='quarto')
        proc.process()
    finally: os.chdir(root)
    nb = nbformat.reads(nb2str(proc.nb), 4)
    nb.metadata['language_info'] = {'name': 'python'}
    for c in nb.cells:
        if c.cell_type != 'code': continue
        c.metadata.pop('execution', None) # times, not as nbformat wants them
        lines = c.source.splitlines()
        if any(re.match(r'#\|\s*echo:\s*false', l) for l in lines): c.metadata['transient'] = {'remove_source': True}
        c.source = '\n'.join(l for l in lines if not l.startswith('#|'))
    return nb

def _link(m, cfg):
    mark,text,target = m.groups()
    target = f'{cfg.nbs_path.name}/{target}' if mark and '://' not in target else doc_link(target, cfg.doc_url)
    return f'{mark}[{text}]({target})'

def readme():
    "Text of README.md: pictures are files below nbs, links lead to the site"
    cfg = get_config(root)
    text,resources = MarkdownExporter().from_notebook_node(filtered(cfg.nbs_path/cfg.readme_nb, not_in_readme))
    if resources['outputs']: raise SystemExit(f'{cfg.readme_nb} has pictures in its outputs: save them below nbs/images and show them with ![](...)')
    text = re.sub(r'(!?)\[([^\]]*)\]\(([^)\s]+)\)', lambda m: _link(m, cfg), text)
    return re.sub(r'\n{3,}', '\n\n', re.sub(r'[ \t]+$', '', text, flags=re.M)).strip() + '\n'

# The sidebar, as Quarto reads it

def page_path(fn, nbs): return nbpath2html(Path(fn).relative_to(nbs)).as_posix()

def _auto(pattern, nbs):
    "Notebooks of a pattern, those with an `order` in their front matter first, then by name; the home page is not among them"
    fns = [o for o in nbglob(nbs, as_path=True) if o.relative_to(nbs).match(pattern) and o.name != 'index.ipynb']
    return sorted(fns, key=lambda o: (nb_frontmatter(read_nb(o)).get('order', 10**6), o.name.upper()))

def sidebar(file=root/'_quarto.yml', nbs=root/'nbs'):
    "(section, notebooks) in the order of `website.sidebar.contents`"
    contents = yaml.safe_load(Path(file).read_text(encoding='utf-8'))['website']['sidebar']['contents']
    return [(o['section'], [f for e in o['contents'] for f in ([nbs/e] if isinstance(e, str) else _auto(e['auto'], nbs))]) for o in contents]

def sidebar_faults(file=root/'_quarto.yml', nbs=root/'nbs'):
    "Notebooks that the sidebar leaves out or names twice, entries without a notebook, and sections without an entry"
    there,bar = set(nbglob(nbs, as_path=True)),sidebar(file, nbs)
    n = Counter(f for _,fns in bar for f in fns)
    return [*(f'{f.name} is in no section of the sidebar' for f in sorted(there-n.keys())), *(f'{f.name} is in the sidebar {k} times' for f,k in n.items() if k > 1),
        *(f'{f.name} is in the sidebar and nowhere else' for f in sorted(n.keys()-there)), *(f'section {o} of the sidebar is empty' for o,fns in bar if not fns)]

# Pages

class Renderer(IPythonRenderer):
    "Headings by pandoc's names, equations as MathML, links between pages, pictures beside them"
    def __init__(self, page):
        super().__init__(escape=False)
        self.page = page
    def heading(self, text, level, **attrs):
        name = re.sub(r'\s+', '-', re.sub(r'[^\w\s.-]', '', BeautifulSoup(text, 'html.parser').text.strip().lower()))
        name = self.page.new_name(re.sub(r'^[^a-z]+', '', name) or 'section')
        return f'<h{level} id="{name}">{text} <a class="anchor" href="#{name}" aria-label="link to this section">#</a></h{level}>\n'
    def inline_math(self, body, display='inline'): return convert(re.sub(r'\\arg\b', r'\\operatorname{arg}', body), display=display)
    def block_math(self, body): return self.inline_math(body, 'block')
    def latex_environment(self, name, body): return self.block_math(rf'\begin{{{name}}}{body}\end{{{name}}}')
    def link(self, text, url, title=None): return super().link(text, self.page.target(url), title)
    def image(self, text, url, title=None): return super().image(text, self.page.picture(url), title)

_formatter = lru_cache(lambda language: HtmlFormatter(cssclass=escape(f' highlight hl-{language}'))) # which takes long to make

class Highlight(Highlight2HTML):
    "Code in color, by one formatter a language"
    def __call__(self, source, language=None, metadata=None):
        language = language or self.pygments_lexer
        return _pygments_highlight(source or ' ', _formatter(language), language, metadata)

class Exporter(HTMLExporter):
    "Cells as HTML without a head, Markdown by `Renderer`; the notebooks are the project's own, so nothing is sanitized"
    def __init__(self): super().__init__(template_name='basic', exclude_input_prompt=True, exclude_output_prompt=True, optimistic_validation=True) # the notebook is checked once, not after each of its steps
    def from_notebook_node(self, nb):
        html = super(HTMLExporter, self).from_notebook_node(nb, self._init_resources(None))[0] # HTMLExporter's own would parse the whole page for this:
        return re.sub(r'<img (?![^>]*\balt=)', '<img alt="No description has been provided for this image" ', html)
    def markdown2html(self, source):
        return MarkdownWithMath(renderer=Renderer(self.page)).render(re.sub(r'(\]\([^)\s]*\))\{[^}\n]*\}', r'\1', source))
    def default_filters(self):
        yield from super().default_filters()
        yield 'markdown2html', self.markdown2html
        yield 'highlight_code', Highlight(pygments_lexer='python', parent=self)
        yield 'clean_html', lambda html: html

class Page:
    "A notebook's page: where it lies and what its links mean"
    def __init__(self, fn, out, cfg):
        self.fn,self.out,self.cfg,self.path,self.names,self.symbols = fn,out,cfg,page_path(fn, cfg.nbs_path),Counter(),{}
        self.file,self.up = out/self.path,'../'*self.path.count('/')
        self.front = nb_frontmatter(read_nb(fn))
    def new_name(self, name):
        "Name of a heading, its own on the page"
        n,self.names[name] = self.names[name],self.names[name]+1
        return f'{name}-{n}' if n else name
    def target(self, url):
        "Symbols that nbdev looked up and notebooks become pages beside this one"
        if url.startswith(self.cfg.doc_url + '/'):
            at = url.removeprefix(self.cfg.doc_url + '/')
            self.symbols[self.up + at] = at.partition('#')[::2]
            return self.up + at
        path,mark,name = url.partition('#')
        if '://' in url or not path.endswith('.ipynb'): return url
        return nbpath2html(Path(path)).as_posix() + mark + name
    def picture(self, url):
        "A picture keeps its place; one outside the site stays behind, as with Quarto"
        src,to = self.fn.parent/url,Path(os.path.normpath(self.file.parent/url))
        if '://' not in url and src.is_file() and self.out in to.parents:
            to.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(src, to)
        return url
    def render(self, exporter):
        nb,exporter.page = filtered(self.fn),self
        nb.cells = [c for c in nb.cells if c.cell_type != 'raw'] # the front matter
        self.body = exporter.from_notebook_node(nb)
    def settle(self, names):
        "Links to symbols that have no entry of their own, such as private ones, lead to the page"
        for url,(path,name) in self.symbols.items():
            if name and name not in names.get(path, ()): self.body = self.body.replace(f'href="{url}"', f'href="{self.up}{path}"')
    def write(self, bar, every):
        i,text = every.index(self),{k: escape(str(self.front.get(k, ''))) for k in ('title','description')}
        link = lambda at, way: f'<a href="{self.up}{every[at].path}" rel="{way}">{escape(every[at].front["title"])}</a>' if 0 <= at < len(every) else ''
        self.file.parent.mkdir(parents=True, exist_ok=True)
        html = _page.format(**text, up=self.up, nav=_nav(bar, {o.fn: o for o in every}, self), body=self.body, before=link(i-1, 'prev'), after=link(i+1, 'next'))
        self.file.write_text(html, encoding='utf-8')
        print(self.file)

def _nav(bar, pages, here):
    "The sidebar as it is on one page; the section that the page is in is open"
    def item(o):
        now,front = ' aria-current="page"'*(o is here),{k: escape(str(o.front.get(k, ''))) for k in ('title','description')}
        return f'<li><a href="{here.up}{o.path}" title="{front["description"]}"{now}>{front["title"]}</a></li>'
    return '\n'.join(f"<details{' open'*(here.fn in fns)}><summary>{escape(section)}</summary><ul>\n" + '\n'.join(item(pages[f]) for f in fns) + '\n</ul></details>'
        for section,fns in bar)

_page = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title><meta name="description" content="{description}"><link rel="stylesheet" href="{up}site.css"></head>
<body><nav aria-label="Pages">
{nav}
</nav><main>
<h1>{title}</h1>
<p class="description">{description}</p>
{body}
<footer>{before}{after}</footer>
</main></body></html>
"""

def site(folder):
    "Every notebook as an HTML page below `folder`, in the order of the sidebar"
    cfg,out = get_config(root),Path(folder)
    nbdev.processors.get_config = lru_cache(lambda: cfg) # which nbdev reads again for each cell
    if bad := sidebar_faults(): raise SystemExit('\n'.join(bad))
    bar,bad,exporter = sidebar(),[],Exporter()
    every = [Page(f, out, cfg) for _,fns in bar for f in fns]
    out.mkdir(parents=True, exist_ok=True)
    css = [(o/n).read_text(encoding='utf-8') for o,n in ((root/'.ci','site.css'), (cfg.nbs_path,'styles.css'))]
    (out/'site.css').write_text('\n'.join([*css, HtmlFormatter().get_style_defs('.highlight')]), encoding='utf-8')
    for o in every:
        try: o.render(exporter)
        except Exception as e: bad.append(f'{o.fn.name}, in a cell that nbdev runs for the page since it exports or imports: {e}')
    if bad: raise SystemExit('\n'.join(bad))
    names = {o.path: {*o.names} for o in every}
    for o in every:
        o.settle(names)
        o.write(bar, every)

# What is wrong with pages

def _broken_picture(src, file):
    "None for a picture that can be seen"
    try:
        data = base64.b64decode(src.partition(',')[2]) if src.startswith('data:') else (file.parent/unquote(src)).read_bytes()
        if 'svg' in src[:20] or src.endswith('.svg'): return None if b'<svg' in data else 'damaged'
        Image.open(io.BytesIO(data)).verify()
    except FileNotFoundError: return 'missing'
    except Exception: return 'damaged'

class Dom:
    "What a check needs of a page"
    def __init__(self, file):
        soup = BeautifulSoup(re.sub(r'<span( class="\w+")?>|</span>', '', file.read_text(encoding='utf-8')), 'html.parser') # without the colors of code
        main = soup.main or soup
        self.file,self.names = file,{o['id'] for o in soup.select('[id]')}
        self.links = [o['href'] for o in soup.select('a[href]')]
        self.pictures = [o.get('src', '') for o in main.select('img')]
        self.wanted = [o.get('src') or o.get('href') for o in soup.select('script[src], link[href], img[src], iframe[src]')]
        self.math = [o.get_text() for o in main.select('math')]
        self.outputs = [o.get_text() for o in main.select('.output_text')]
        for o in main.select('footer, nav, style, script, .anchor'): o.decompose()
        self.titled = any(o.get_text(strip=True) for o in main.select('h1'))
        for o in main.select('h1'): o.decompose()
        self.words = len(main.get_text().split())
        for o in main.select('code, pre, math'): o.decompose()
        self.prose = main.get_text()

def _link_fault(url, page, pages, folder):
    "Why a link inside the site leads nowhere"
    parts = urlsplit(url)
    if parts.scheme or parts.netloc: return
    to = page.file if not parts.path else Path(os.path.normpath(page.file.parent/unquote(parts.path)))
    if folder not in to.parents or not to.is_file(): return f'link to {url}: there is no such page'
    if parts.fragment and to in pages and unquote(parts.fragment) not in pages[to].names: return f'link to {url}: no such heading there'

def faults(folder):
    "What is wrong with the pages below a folder, a line each"
    folder = Path(folder).resolve()
    pages = {o: Dom(o) for o in sorted(folder.rglob('*.html'))}
    res = [] if pages else [f'{folder.name}: there are no pages']
    for f,o in pages.items():
        bad = [] if o.titled and o.words > 20 else ['the page is empty' if o.titled else 'the page has no title']
        bad += filter(None, (_link_fault(u, o, pages, folder) for u in dict.fromkeys(o.links)))
        bad += [f'figure {u[:60]} is {why}' for u in o.pictures if (why := _broken_picture(u, f))]
        bad += [f'{u} is asked of the network' for u in o.wanted if re.match(r'(https?:)?//', u)]
        bad += [f'a figure was not saved: {t.strip()[:60]}' for t in o.outputs if t.lstrip().startswith(('<Figure size','<PIL.'))]
        bad += [f'equation with an unknown command: {t[:60]}' for t in o.math if '\\' in t]
        bad += [f'equation as TeX: {m[0][:60]}' for m in re.finditer(r'\$[^$\n]*\\[a-zA-Z]+[^$\n]*\$', o.prose)]
        res += [f'{f.relative_to(folder).as_posix()}: {b}' for b in bad]
    return res

if __name__ == '__main__':
    what,*to = sys.argv[1:] or ['']
    to = [Path(o).absolute() for o in to]
    os.chdir(root)
    sys.path.insert(0, str(root))
    if what == 'readme': (to[0] if to else root/'README.md').write_text(readme(), encoding='utf-8')
    elif what == 'site' and to: site(to[0])
    elif what == 'check' and to: raise SystemExit('\n'.join(faults(to[0])) or None)
    else: raise SystemExit(__doc__)
