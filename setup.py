"Requirements are written once, in settings.ini; everything else about the package is in pyproject.toml."
from configparser import ConfigParser
from pathlib import Path
from setuptools import setup

cfg = ConfigParser()
cfg.read(Path(__file__).parent/'settings.ini', encoding='utf-8')
cfg = cfg['DEFAULT']
extras = {k.removesuffix('_requirements'): v.split() for k,v in cfg.items() if k.endswith('_requirements')}
extras['dev'] = [o for k,v in extras.items() if k != 'render' for o in v] # developers test every extra but the one that fits one version of Python
setup(install_requires=cfg['requirements'].split(), extras_require=extras)
