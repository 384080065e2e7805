// OCI registry and clients for tests: the CNCF's registry in memory, ORAS, and Google's image library.
package main

import (
	"context"
	"fmt"
	"log"
	"net/http"
	"os"
	"path/filepath"
	"strings"

	"github.com/distribution/distribution/v3/configuration"
	_ "github.com/distribution/distribution/v3/registry/auth/htpasswd"
	_ "github.com/distribution/distribution/v3/registry/auth/token"
	"github.com/distribution/distribution/v3/registry/handlers"
	_ "github.com/distribution/distribution/v3/registry/storage/driver/inmemory"
	"github.com/google/go-containerregistry/pkg/crane"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"oras.land/oras-go/v2"
	"oras.land/oras-go/v2/content/file"
	"oras.land/oras-go/v2/registry/remote"
)

func main() {
	var err error
	switch command := os.Args[1]; command {
	case "serve":
		err = serve(os.Args[2])
	case "push-files":
		err = pushFiles(os.Args[2], os.Args[3], os.Args[4:])
	case "push-image":
		err = pushImage(os.Args[2], os.Args[3:])
	default:
		err = fmt.Errorf("unknown command %q", command)
	}
	if err != nil {
		log.Fatal(err)
	}
}

// serve runs the registry with a configuration file until it is killed.
func serve(path string) error {
	opened, err := os.Open(path)
	if err != nil {
		return err
	}
	config, err := configuration.Parse(opened)
	if err != nil {
		return err
	}
	return http.ListenAndServe(config.HTTP.Addr, handlers.NewApp(context.Background(), config))
}

// pushFiles pushes files and directories of a folder as `oras push` does.
func pushFiles(reference, folder string, names []string) error {
	ctx := context.Background()
	store, err := file.New(folder)
	if err != nil {
		return err
	}
	defer store.Close()
	var layers []ocispec.Descriptor
	for _, name := range names {
		layer, err := store.Add(ctx, name, "", filepath.Join(folder, name))
		if err != nil {
			return err
		}
		layers = append(layers, layer)
	}
	options := oras.PackManifestOptions{Layers: layers}
	manifest, err := oras.PackManifest(ctx, store, oras.PackManifestVersion1_1, "application/vnd.test.model", options)
	if err != nil {
		return err
	}
	tag := reference[strings.LastIndex(reference, ":")+1:]
	if err = store.Tag(ctx, manifest, tag); err != nil {
		return err
	}
	repository, err := remote.NewRepository(strings.TrimSuffix(reference, ":"+tag))
	if err != nil {
		return err
	}
	repository.PlainHTTP = true
	_, err = oras.Copy(ctx, store, tag, repository, tag, oras.DefaultCopyOptions)
	return err
}

// pushImage pushes an image with one layer for each tar file.
func pushImage(reference string, layers []string) error {
	image := empty.Image
	for _, path := range layers {
		layer, err := tarball.LayerFromFile(path)
		if err != nil {
			return err
		}
		var appended v1.Image
		if appended, err = mutate.AppendLayers(image, layer); err != nil {
			return err
		}
		image = appended
	}
	return crane.Push(image, reference, crane.Insecure)
}
