package apiserver

// InstallDefinitions is what a server does at its start.
var InstallDefinitions = installDefinitions
