// "status" and "status.dump" of containerd's archives, for checkpoints that come
// from elsewhere.
import type { ConfigDump } from '../../oci-spec/checkpoint-archive.js';

export function containerdStatus(config: ConfigDump): string {
  const created = nanoseconds(config.createdTime);
  const status = {
    Pid: 0,
    CreatedAt: created,
    StartedAt: created,
    FinishedAt: 0,
    ExitCode: 0,
    Reason: '',
    Message: '',
  };
  return stringify({ Version: 'v1', ...status });
}

export function containerdStatusDump(config: ConfigDump): string {
  const created = nanoseconds(config.createdTime);
  return stringify({
    id: config.id,
    metadata: { name: config.name },
    state: 1,
    created_at: created,
    started_at: created,
    image: { image: config.rootfsImageName },
    image_ref: config.rootfsImageRef,
  });
}

/** As text: more than a double holds. */
function nanoseconds(time: string): string {
  const ms = Date.parse(time);
  return Number.isFinite(ms) && ms > 0 ? `${ms}000000` : '0';
}

function stringify(document: object): string {
  return JSON.stringify(document).replace(/"(CreatedAt|StartedAt|created_at|started_at)":"(\d+)"/g, '"$1":$2');
}
