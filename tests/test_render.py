"Rendered scenes: what is kept, what is written and how a stopped command goes on, with Blender where it is and with a stand-in for its pictures where it is not"
import json, sys
from importlib.util import find_spec
from types import SimpleNamespace
import numpy as np, pytest
import redo.data.render as render
from redo.cli import redo_render, run_command
from redo.core import RedoError
from redo.data.render import (GAP, MATERIALS_3D, RENDER_VARIANTS, SHAPES, SIZES, Camera, describe_scene, draw_plan, is_kept, objects_gap, render_scene,
    render_scenes, render_size)
from redo.data.spec import get_source

blender = pytest.mark.skipif(not find_spec('bpy'), reason="needs Blender: pip install '.[render]'")

@pytest.mark.parametrize('variant', RENDER_VARIANTS)
def test_plans(variant):
    "Every scene: three to ten objects that stand on the ground, apart from each other, of known kinds, in the picture, of materials of its variant"
    for i in range(60):
        objects,ground,camera,lights,_ = draw_plan(i, variant=variant, seed=3)
        known = describe_scene(objects, ground, camera, (240,320))
        assert 3 <= len(objects) <= 10 and objects_gap(objects) >= GAP and (lights[:,2] > 2).all()
        for k,o in enumerate(known['objects'], 1):
            assert o['index'] == k and o['shape'] in SHAPES and o['3d_coords'][2] == SIZES[o['size']]*SHAPES[o['shape']][0]
            x,y,d = o['pixel_coords']
            assert 0 < x < 320 and 0 < y < 240 and d > 4
            assert o['material'] in (('rubber','metal') if variant == 'vbg' else MATERIALS_3D) and ('color' in o) == (variant == 'vbg')
        if variant == 'camo': assert {o['material'] for o in objects} == {ground}
        if variant in ('pbg','grassbg'): assert ground == {'pbg': 'plain', 'grassbg': 'grass'}[variant]
        there = known['relationships']
        for i,row in enumerate(there['left']): assert all(i in there['right'][j] for j in row)

def disks(i, size=(240,320), variant='full', seed=0, samples=32, threads=0, n=(3,10)):
    "Instead of Blender: disks where the camera sees the objects, those behind first"
    for attempt in range(200):
        objects,ground,camera,_,g = draw_plan(i, attempt, variant, seed, n)
        known,labels = describe_scene(objects, ground, camera, size),np.zeros(size, np.uint8)
        y,x = np.mgrid[:size[0],:size[1]]
        for o in sorted(known['objects'], key=lambda o: -o['pixel_coords'][2]):
            px,py,d = o['pixel_coords']
            labels[(x-px)**2+(y-py)**2 < (SIZES[o['size']]*max(size)/d)**2] = o['index']
        if is_kept(labels, len(objects)): return g.integers(0, 256, (11,3), np.uint8)[labels],labels,known

@pytest.fixture
def stand_in(monkeypatch):
    monkeypatch.setattr(render, 'render_scene', disks)
    monkeypatch.setattr(render, '_blender', lambda: SimpleNamespace(app=SimpleNamespace(version=(5,0,1))))

def files(folder): return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob('*') if p.is_file() and p.name != '.redo.lock'}

def test_stopped_and_resumed(stand_in, monkeypatch, tmp_path):
    "The same files as without the stop, which `clevrtex:camo` reads; scenes that are there stay; other settings are refused"
    args = dict(n=7, size=48, variant='camo', seed=2, progress=False)
    render_scenes(tmp_path/'whole', **args)
    def stop(i, *a, **kw):
        if i == 4: raise KeyboardInterrupt
        return disks(i, *a, **kw)
    with monkeypatch.context() as m:
        m.setattr(render, 'render_scene', stop)
        with pytest.raises(KeyboardInterrupt): render_scenes(tmp_path/'stopped', **args)
    at = tmp_path/'stopped'/'clevrtex_camo'
    (at/'0'/'CLEVRTEX_camo_000003.json').unlink() # killed before the last file of a scene
    (at/'0'/'.CLEVRTEX_camo_000004-ab12cd34.png').write_bytes(b'half')
    assert render_scenes(tmp_path/'stopped', **args)['new'] == 4
    assert files(at) == files(tmp_path/'whole'/'clevrtex_camo')
    assert render_scenes(tmp_path/'stopped', **args)['new'] == 0
    for change,why in ((dict(seed=3), 'seed 2, not 3'), (dict(size=64), r'size \[48, 64\], not \[64, 85\]'), (dict(samples=8), 'samples 32, not 8')):
        with pytest.raises(RedoError, match=why): render_scenes(tmp_path/'stopped', **args | change)
    source = get_source('clevrtex:camo', tmp_path/'stopped')
    for i in range(7):
        image,labels,known = disks(i, (48,64), 'camo', 2)
        got = source.read(i)
        assert (got[0] == image).all() and (got[1] == labels).all() and is_kept(labels, len(known['objects']))
        assert source.known(i) == dict(ground_material=known['ground_material'], objects=[{k: o[k] for k in ('material','shape','size','rotation')} for o in known['objects']])

def test_description(stand_in, tmp_path):
    "What stands beside a picture has ClevrTex's keys"
    folder = render_scenes(tmp_path, 1, 240, 'vbg', progress=False)['folder']
    told = json.loads((folder/'0'/'CLEVRTEX_vbg_000000.json').read_text())
    assert {'num_objects','split','image_index','image_filename','ground_material','directions','objects','relationships','mask_filename'} == set(told)
    assert {'shape','size','rotation','color','material','index','3d_coords','pixel_coords'} == set(told['objects'][0]) and told['num_objects'] == len(told['objects'])

def test_command(stand_in, monkeypatch, tmp_path, capsys):
    "The command says what it wrote and how to use it; without Blender it names the extra, and writes nothing"
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, 'bpy', None)
    monkeypatch.setattr('redo.command.find_spec', lambda o: None)
    assert run_command(redo_render.__wrapped__, ['new']) == 1
    assert "this needs bpy: pip install '.[render]'" in capsys.readouterr().err and not (tmp_path/'new').exists()
    monkeypatch.setattr('redo.command.find_spec', lambda o: True)
    assert run_command(redo_render.__wrapped__, ['new','--n','21','--size','40','--variant','pbg']) == 0
    said = capsys.readouterr().out
    assert 'scene 20 of 21' in said and '21 scenes in new/clevrtex_pbg, 21 of them new' in said and 'clevrtex:pbg-crop-(128,128)' in said
    assert run_command(redo_render.__wrapped__, ['new','--n','21','--size','40','--variant','outd']) == 1
    assert "unknown variant 'outd'" in capsys.readouterr().err

@blender
def test_blender(tmp_path):
    "Blender's scenes: what was planned is what is seen, where the camera says, twice the same but for rounding"
    size = render_size(64)
    for i,variant in enumerate(('full','vbg')):
        image,labels,known = render_scene(i, size, variant, samples=4, threads=1)
        again = render_scene(i, size, variant, samples=4, threads=1)
        assert abs(again[0].astype(int)-image).max() <= 2 and (again[1] == labels).all() and again[2] == known # it adds up in another order each time
        assert image.shape == (*size,3) and image.std() > 10 and is_kept(labels, len(known['objects']))
        deepest = max(o['pixel_coords'][2] for o in known['objects'])
        nearest = min(known['objects'], key=lambda o: o['pixel_coords'][2])
        x,y,_ = nearest['pixel_coords']
        assert labels[y,x] == nearest['index'] and deepest < 20 # nothing hides the nearest one

@blender
def test_camera():
    "Points are where Blender's own function has them"
    import bpy
    from bpy_extras.object_utils import world_to_camera_view
    from mathutils import Vector
    objects,ground,camera,lights,g = draw_plan(1)
    render._build(bpy, objects, ground, camera, lights, g)
    scene = bpy.context.scene
    scene.render.resolution_x,scene.render.resolution_y = 320,240
    bpy.context.view_layer.update()
    points = np.random.default_rng(0).uniform(-3, 3, (20,3))
    theirs = np.array([world_to_camera_view(scene, scene.camera, Vector(p)) for p in points])
    assert np.allclose(camera.project(points, (240,320)), np.stack([theirs[:,0]*320, (1-theirs[:,1])*240, theirs[:,2]], 1), atol=1e-3)
