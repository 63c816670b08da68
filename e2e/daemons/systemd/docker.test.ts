// docker with native.cgroupdriver=systemd: the scope of a container, from run
// to rm.
import { openFor } from '../../support/open-manager.js';
import { Docker, dockerSlice } from '../../support/docker.js';
import { counter } from '../../support/podman.js';
import { assertScopeGone, assertScopeHolds, property } from '../../support/systemd.js';
import { useTestBed } from '../../support/test-bed.js';

describe("docker's containers in systemd's scopes", function () {
  this.timeout(300_000);
  const bed = useTestBed();
  let docker: Docker;

  beforeEach(async function () {
    docker = await openFor(this, bed, ['daemons', 'systemd'], () => Docker.open());
  });

  it('are held after each of two starts from a checkpoint, and by none after rm', async () => {
    await docker.must('run', '--detach', '--name', 'web', '--network', 'host', 'box', 'sh', '-c', counter);
    const scope = `docker-${await docker.inspect('web', '{{.Id}}')}.scope`;
    const assertHeld = async (): Promise<void> => {
      await docker.count('web');
      await assertScopeHolds(scope, Number(await docker.inspect('web', '{{.State.Pid}}')), dockerSlice);
    };
    await assertHeld();
    const cgroup = await property('ControlGroup', scope);
    await docker.must('checkpoint', 'create', '--leave-running', 'web', 'running');
    await assertHeld();
    for (const name of ['one', 'two']) {
      await docker.must('checkpoint', 'create', 'web', name);
      await assertScopeGone(scope, cgroup);
      await docker.forgetCheckpoints();
      await docker.must('start', '--checkpoint', name, 'web');
      await assertHeld();
    }
    await docker.must('rm', '--force', 'web');
    await assertScopeGone(scope, cgroup);
  });
});
