"Requirements are written once, in settings.ini; everything else about the package is in pyproject.toml."
from configparser import ConfigParser
from pathlib import Path
from setuptools import setup

cfg = ConfigParser()
cfg.read(Path(__file__).parent/'settings.ini', encoding='utf-8')
cfg = cfg['DEFAULT']
setup(install_requires=cfg['requirements'].split(), extras_require=dict(dev=cfg['dev_requirements'].split()))
