// Package supervisor keeps a node's processes running where no systemd does it.
//
// Its one idea: a process is a pid file, not a child. A component is started in
// its own session and written down with its start time; a supervisor that comes
// back after its own death finds the components by those files and goes on
// watching them through pidfds. Killing the supervisor therefore kills nothing
// else, and killing a component gets it back within a second.
package supervisor
