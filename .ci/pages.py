"""Notebooks to pages without Quarto: nbdev's own filters, then nbconvert

python .ci/pages.py readme [FILE]    README.md from nbs/index.ipynb
python .ci/pages.py site FOLDER      every notebook as HTML, for a look at the pages
"""
import os, re, sys
from pathlib import Path
import nbformat
from fastcore.nbio import nb2str
from nbconvert import HTMLExporter, MarkdownExporter
from nbdev.config import get_config
from nbdev.doclinks import nbglob
from nbdev.process import NBProcessor
from nbdev.processors import FilterDefaults
from nbdev.readme_filter import doc_link

root = Path(__file__).resolve().parents[1]
# The README starts with its title, and its links are written out: looked-up links would depend on what is installed
not_in_readme = 'FrontmatterProc', 'add_show_docs', 'exec_show_docs', 'add_links'

def filtered(fn, skip=()):
    "The notebook after nbdev's filters, in nbconvert's format; cells with `echo: false` lose their source"
    proc = NBProcessor(fn, procs=[p for p in FilterDefaults().procs() if p.__name__ not in skip], rm_directives='quarto')
    proc.process()
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

def site(folder):
    "Every notebook as an HTML page below `folder`"
    for fn in nbglob(get_config().nbs_path, as_path=True).sorted():
        out = Path(folder)/fn.relative_to(get_config().nbs_path).with_suffix('.html')
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(HTMLExporter().from_notebook_node(filtered(fn, ['FrontmatterProc']))[0], encoding='utf-8')
        print(out)

if __name__ == '__main__':
    what,*to = sys.argv[1:] or ['']
    to = [Path(o).absolute() for o in to]
    os.chdir(root)
    sys.path.insert(0, str(root))
    if what == 'readme': (to[0] if to else root/'README.md').write_text(readme(), encoding='utf-8')
    elif what == 'site' and to: site(to[0])
    else: raise SystemExit(__doc__)
