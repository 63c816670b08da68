// A client of the Container Runtime Interface (runtime.v1), as the kubelet is
// one: the calls that a checkpoint needs, with the fields that it needs.
import { Client, credentials } from '@grpc/grpc-js';
import protobuf from 'protobufjs';

// Numbers and names are the interface's; everything else of it is left out.
const proto = `
  syntax = "proto3";
  package runtime.v1;
  message PodSandboxMetadata { string name = 1; string uid = 2; string namespace = 3; uint32 attempt = 4; }
  message NamespaceOption { int32 network = 1; int32 pid = 2; int32 ipc = 3; }
  message LinuxSandboxSecurityContext { NamespaceOption namespace_options = 1; }
  message LinuxPodSandboxConfig { string cgroup_parent = 1; LinuxSandboxSecurityContext security_context = 2; }
  message PodSandboxConfig {
    PodSandboxMetadata metadata = 1; string hostname = 2; string log_directory = 3; LinuxPodSandboxConfig linux = 8;
  }
  message RunPodSandboxRequest { PodSandboxConfig config = 1; string runtime_handler = 2; }
  message RunPodSandboxResponse { string pod_sandbox_id = 1; }
  message PodSandboxId { string pod_sandbox_id = 1; }
  message ContainerMetadata { string name = 1; uint32 attempt = 2; }
  message ImageSpec { string image = 1; }
  message LinuxContainerSecurityContext { NamespaceOption namespace_options = 3; }
  message LinuxContainerConfig { LinuxContainerSecurityContext security_context = 2; }
  message ContainerConfig {
    ContainerMetadata metadata = 1; ImageSpec image = 2; repeated string command = 3; repeated string args = 4;
    string log_path = 11; LinuxContainerConfig linux = 15;
  }
  message CreateContainerRequest { string pod_sandbox_id = 1; ContainerConfig config = 2; PodSandboxConfig sandbox_config = 3; }
  message ContainerId { string container_id = 1; }
  message StopContainerRequest { string container_id = 1; int64 timeout = 2; }
  message ContainerStatus { string id = 1; int32 state = 3; }
  message ContainerStatusResponse { ContainerStatus status = 1; }
  message ExecSyncRequest { string container_id = 1; repeated string cmd = 2; int64 timeout = 3; }
  message ExecSyncResponse { bytes stdout = 1; bytes stderr = 2; int32 exit_code = 3; }
  message CheckpointContainerRequest { string container_id = 1; string location = 2; int64 timeout = 3; }
  message Empty {}
`;

/** Request and response of each call. */
const calls = {
  RunPodSandbox: ['RunPodSandboxRequest', 'RunPodSandboxResponse'],
  StopPodSandbox: ['PodSandboxId', 'Empty'],
  RemovePodSandbox: ['PodSandboxId', 'Empty'],
  CreateContainer: ['CreateContainerRequest', 'ContainerId'],
  StartContainer: ['ContainerId', 'Empty'],
  StopContainer: ['StopContainerRequest', 'Empty'],
  RemoveContainer: ['ContainerId', 'Empty'],
  ContainerStatus: ['ContainerId', 'ContainerStatusResponse'],
  ExecSync: ['ExecSyncRequest', 'ExecSyncResponse'],
  CheckpointContainer: ['CheckpointContainerRequest', 'Empty'],
} as const;

/** Values of NamespaceOption. */
export const namespaceMode = { pod: 0, container: 1, node: 2 } as const;
/** Values of ContainerStatus.state. */
export const containerState = { created: 0, running: 1, exited: 2 } as const;

const types = protobuf.parse(proto, { keepCase: true }).root.lookup('runtime.v1') as protobuf.Namespace;

export class Cri {
  readonly #client: Client;

  constructor(socket: string) {
    this.#client = new Client(`unix://${socket}`, credentials.createInsecure());
  }

  /** Rejects with what the other side says. */
  async call(name: keyof typeof calls, request: Readonly<Record<string, unknown>>): Promise<Record<string, unknown>> {
    const [requestType, responseType] = calls[name].map((type) => types.lookupType(type));
    return await new Promise((resolve, reject) => {
      this.#client.makeUnaryRequest(
        `/runtime.v1.RuntimeService/${name}`,
        (value: object) => Buffer.from(requestType!.encode(requestType!.fromObject(value)).finish()),
        (bytes: Buffer) => responseType!.toObject(responseType!.decode(bytes), { defaults: true }),
        request,
        { deadline: Date.now() + 60_000 },
        (error, response) => (error === null ? resolve(response ?? {}) : reject(new Error(error.details))),
      );
    });
  }

  close(): void {
    this.#client.close();
  }
}
