// Package resources holds the descriptors of the built-in resources: for each
// its names, defaulting, validation, status rules and table columns, in one
// place. All lists them; package apiserver makes storages of them.
//
// Defaults and rules come from the doc comments of the types in k8s.io/api.
// Errors carry the field's path, as the reference's do.
package resources
