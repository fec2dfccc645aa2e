"Data sets are named as in the ClevrTex benchmark: every spec that its own parser was asked about means the same here, or is told to be wrong"
import json
import pytest
import redo.data.photos, redo.data.scenes # photos: mixtures
from redo.core import RedoError, shared_path
from redo.data.scenes import SCENE_SIZES, scene_flags, scene_shape
from redo.data.spec import SOURCES, get_source, parse_spec

at = shared_path('fixtures','clevrtex','schedules.json')
facts = json.loads(at.read_text()) if at else dict(data_specs=[], data_spec_errors=[], size_names={})
FLAGS = dict(centre_crop='crop', black_background='sbg', random_background='rbg', random_colour_all_objects='rso', random_colour_per_object='rdo',
    flip='flip', only_object='obj')
def by_spec(o): return [pytest.param(x, id=x['spec'] or 'empty') for x in o] or [pytest.param(None, marks=pytest.mark.skip(reason='needs the shared fixtures'))]

def told(spec):
    "The one line that says what is wrong with a spec"
    with pytest.raises(RedoError) as e: scene_shape(spec)
    assert 10 < len(str(e.value)) < 600 and '\n' not in str(e.value)
    return str(e.value)

def strange(o):
    "What is no set, variant or size of ours, in words that a message has to hold; None where all is known"
    for name,variant in o['datasets']:
        ours = {'clevr_with_masks': 'clevr'}.get(name, name)
        if ours not in SCENE_SIZES: return f"unknown set '{name}'" if name not in SOURCES else 'has no size of its own'
        if variant and variant not in SOURCES[ours].variants: return f"unknown variant '{variant}' of {ours}"
    size = o['size']
    if size and (len(size) != 2 or not all(isinstance(x, int) for x in size)): return f"unknown flag '({','.join(map(str, size))})'"

def shape_of(o):
    "The shape that is meant: that of the reference, but where it is known to be wrong"
    if isinstance(o['shape'], list): return tuple(o['shape'])
    if o['size']: return (3,*o['size'])
    crop,names = o['centre_crop'],[n for n,_ in o['datasets']]
    if isinstance(o['shape'], dict) and 'clevr6' not in names: return (3,*(b-a for a,b in (o['shape']['row_slice'], o['shape']['col_slice'])))
    h,w = SCENE_SIZES[names[0]] # outd, sets without shapes there, and clevr6, which is CLEVR and is cropped like it
    s = int(min(h, w)*(.8 if names[0].startswith('clevr') else 1))
    return (3,s,s) if crop else (3,h,w)

@pytest.mark.parametrize('o', by_spec(facts['data_specs']))
def test_spec(o):
    "Sets, flags, size and shape"
    if why := strange(o):
        said = told(o['spec'])
        assert why in said, said
        return
    spec = parse_spec(o['spec'])
    there = [('clevr_with_masks' if p.name == 'clevr' else p.name, p.variant) for p in spec.parts or (spec,)]
    assert there == [tuple(x) for x in o['datasets']]
    flags = scene_flags(spec)
    assert {k for k in flags if k != 'max'} == {v for k,v in FLAGS.items() if o[k]} and flags.get('max', -1) == o['max_objects']
    assert (spec.size and list(spec.size)) == o['size']
    assert scene_shape(spec) == scene_shape(o['spec']) == shape_of(o)
    assert parse_spec(str(spec)) == spec

@pytest.mark.parametrize('o', by_spec(facts['data_spec_errors']))
def test_wrong(o):
    "What is wrong is said by its name: a flag of the spec, or two that do not go together"
    said,(_,*flags) = told(o['spec']),o['spec'].split('-')
    assert any(f"'{f}'" in said for f in flags) or any(w in said for w in ('exclude each other','two sizes','needs sbg or rbg')), said
    assert "'" in said and o['spec'].split('-')[0] in said

@pytest.mark.parametrize('name,size', facts['size_names'].items() or [pytest.param('', (), marks=pytest.mark.skip(reason='needs the shared fixtures'))])
def test_sizes(name, size):
    "Sizes that have names"
    assert parse_spec(f'clevr-{name}').size == tuple(size)

@pytest.mark.skipif(not (at and (at.parent/'data'/'clevrtex_outd').is_dir()), reason='needs the shared fixtures')
@pytest.mark.parametrize('spec', ['clevrtex:outd','clevrtex:outd-crop','clevrtex:outd-crop-(64,48)','clevrtex:full-tiny','clevrtex:vbg-cc','clevr-crop','clevr-sbg-(40,40)'])
def test_honoured(spec, monkeypatch, tmp_path):
    "What is read has the shape that the spec stands for, `outd` like any variant"
    monkeypatch.setenv('REDO_CACHE', str(tmp_path))
    source = get_source(spec, at.parent/'data')
    source.progress = False
    split = source.splits[0] if 'test' not in source.splits else 'valid' if 'vbg' in spec else 'test'
    pics = source.pictures(split)
    assert pics.images.shape[1:] == scene_shape(spec) and pics.truth.shape == pics.images[:,0].shape and pics.truth.max() > 0
