// The OCI state document: what hooks get on their standard input and what
// `state` prints.

export type ContainerStatus = 'creating' | 'created' | 'running' | 'paused' | 'stopped';

export interface OciState {
  readonly ociVersion: string;
  readonly id: string;
  readonly status: ContainerStatus;
  readonly hostPid: number;
  readonly bundle: string;
  readonly annotations: Readonly<Record<string, string>>;
}

export function formatOciState(state: OciState): string {
  return JSON.stringify({
    ociVersion: state.ociVersion,
    id: state.id,
    status: state.status,
    ...(state.hostPid === 0 ? {} : { pid: state.hostPid }),
    bundle: state.bundle,
    ...(Object.keys(state.annotations).length === 0 ? {} : { annotations: state.annotations }),
  });
}
