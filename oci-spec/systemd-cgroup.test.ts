import assert from 'node:assert/strict';
import { parseRuntimeConfig } from './runtime-config.js';
import { expandSlice, systemdCgroup } from './systemd-cgroup.js';

const at = (cgroupsPath: string | undefined): ReturnType<typeof systemdCgroup> =>
  systemdCgroup(parseRuntimeConfig(JSON.stringify({ root: { path: 'r' }, linux: { cgroupsPath } })), 'c1');

describe('systemd cgroups', () => {
  it('are scopes in slices, each slice in the one that its name begins with', () => {
    assert.deepEqual(at('machine.slice:libpod:abc'), {
      slice: 'machine.slice',
      unit: 'libpod-abc.scope',
      path: '/machine.slice/libpod-abc.scope',
    });
    assert.equal(
      at('kubepods-besteffort-pod1.slice:cri-containerd:abc').path,
      '/kubepods.slice/kubepods-besteffort.slice/kubepods-besteffort-pod1.slice/cri-containerd-abc.scope',
    );
    assert.equal(at('-.slice:docker:abc').path, '/docker-abc.scope');
  });

  it('have defaults', () => {
    assert.equal(at(undefined).path, '/system.slice/runc-c1.scope');
    assert.equal(at(':docker:abc').path, '/system.slice/docker-abc.scope');
    assert.equal(at('a.slice:x:b.slice').path, '/a.slice/b.slice');
  });

  it('are refused in any other form', () => {
    for (const path of ['/a/b', 'a.slice:b', 'a.slice:b:c:d'])
      assert.throws(() => at(path), /linux.cgroupsPath must be "slice:prefix:name" for systemd cgroups/, path);
    for (const slice of ['a', '.slice', 'a/b.slice', '-a.slice', 'a-.slice', 'a--b.slice', '../x.slice', 'a.slice/'])
      assert.throws(() => expandSlice(slice), /linux.cgroupsPath names no slice/, slice);
    assert.throws(() => at('a.slice:x:../../y'), /a unit with a slash/);
  });
});
