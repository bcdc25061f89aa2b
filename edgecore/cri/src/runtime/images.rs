//! Calls about images.

use cri_api::v1;

use super::{CHANGE_DEADLINE, PULL_DEADLINE, READ_DEADLINE, Runtime, within};
use crate::error::CriError;

impl Runtime {
    /// All images of the node.
    pub async fn list_images(&self) -> Result<Vec<v1::Image>, CriError> {
        let request = v1::ListImagesRequest { filter: None };
        let answer = Box::pin(self.images().list_images(within(READ_DEADLINE, request))).await;

        Ok(self.answered(answer, || "list images".to_owned())?.images)
    }

    /// The image of that name, digest or id, if the node has it.
    pub async fn image_status(&self, image: v1::ImageSpec) -> Result<Option<v1::Image>, CriError> {
        let shown = image.image.clone();
        let request = v1::ImageStatusRequest { image: Some(image), verbose: false };
        let answer = Box::pin(self.images().image_status(within(READ_DEADLINE, request))).await;

        Ok(self.answered(answer, || format!("look up image {shown}"))?.image)
    }

    /// Pulls an image; the answer is the reference to start containers from.
    pub async fn pull_image(
        &self,
        image: v1::ImageSpec,
        auth: Option<v1::AuthConfig>,
        sandbox_config: Option<v1::PodSandboxConfig>,
    ) -> Result<String, CriError> {
        let shown = image.image.clone();
        let request = v1::PullImageRequest { image: Some(image), auth, sandbox_config };
        let answer = Box::pin(self.images().pull_image(within(PULL_DEADLINE, request))).await;

        Ok(self.answered(answer, || format!("pull image {shown}"))?.image_ref)
    }

    /// Removes an image. Harmless if already removed.
    pub async fn remove_image(&self, image: v1::ImageSpec) -> Result<(), CriError> {
        let shown = image.image.clone();
        let request = v1::RemoveImageRequest { image: Some(image) };
        let answer = Box::pin(self.images().remove_image(within(CHANGE_DEADLINE, request))).await;

        self.answered(answer, || format!("remove image {shown}")).map(drop)
    }

    /// How full the file systems of images and containers are.
    pub async fn image_fs_info(&self) -> Result<v1::ImageFsInfoResponse, CriError> {
        let request = v1::ImageFsInfoRequest {};
        let answer = Box::pin(self.images().image_fs_info(within(READ_DEADLINE, request))).await;

        self.answered(answer, || "read the usage of the image file system".to_owned())
    }
}
