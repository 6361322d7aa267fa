// Package admission holds the admission plugins that no library brings: what the
// API server itself adds to objects, or refuses, before it stores them.
//
// Register names them in the order in which they run: plugins that fill in
// (ServiceAccount, Priority, …) before those that judge (PodSecurity,
// NodeRestriction, ResourceQuota last, since what it charges must be final). Each
// plugin is a file with its test; it is a small value that the library's
// initializers hand informers and a client, and that sees an admission.Attributes
// at a time. Plugins decide by what the caches hold and never write, except
// for the quota's own accounting.
package admission
